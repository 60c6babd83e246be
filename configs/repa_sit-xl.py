"""REPA (arXiv:2410.06940): DINOv2-B patch tokens, a three-layer MLP, cosine, weight 0.5.

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 7.9; 4M: 5.9; guided (1.8 on [0, 0.7]) 800 epochs: 1.42.
Paper: AHPA Table 4, row "+ REPA" (800 epochs): FID 1.42, sFID 4.7, IS 311.4, Precision 0.8, Recall 0.63.
Paper: AHPA Table G.20, row "+ REPA" (800 epochs): FID 1.42, sFID 4.7, IS 311.4, Precision 0.8, Recall 0.63.
Paper: AHPA Table 6, row "+ REPA": TS_iter_per_s 6.3, GFLOPs 138.5.
Paper: AHPA Table I.21, row "+ REPA": TS_iter_per_s 6.3, GFLOPs 138.5, latency_ms 22.81.
Paper: AHPA Table E.18, row "REPA (DINOv2-B)": FID 8.5, sFID 5.14, gsnr_avg 8.5.
"""

_base_ = ["repa_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
