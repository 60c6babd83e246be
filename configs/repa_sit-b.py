"""REPA (arXiv:2410.06940): DINOv2-B patch tokens, a three-layer MLP, cosine, weight 0.5.

On block 4 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/repa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 24.4.
Paper: AHPA Table 7, row "REPA (DINOv2-B)": gsnr_high_noise 13.9, gsnr_low_noise 4.2, gsnr_avg 8.5.
"""

_base_ = ["sit-b.py", "_base_/repa.py"]
model = _base_._repa
optim_wrapper = dict(clip_grad=1.0)
