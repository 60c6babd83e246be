"""SRA 2: the latent itself as the target, a five-layer MLP, smooth L1 (no code exists; widths inferred).

On block 2 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/sra2_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 28.89.
Paper: AHPA Table 7, row "SRA 2 (Latent)": gsnr_high_noise 12.0, gsnr_low_noise 3.1, gsnr_avg 7.2.
"""

_base_ = ["sit-b.py", "_base_/sra2.py"]
model = _base_._sra2
