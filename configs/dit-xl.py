"""Vanilla DiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: DiT (arXiv:2212.09748), DDPM with 250 steps: FID 19.5 at 400K steps, 9.62 at 7M, 2.27 at 7M
    with guidance 1.5; AHPA Table 4, row "DiT-XL/2", is the last (set train_cfg.max_iters=7_000_000
    for it).
Paper: AHPA Table 4, row "DiT-XL/2" (1400 epochs): FID 2.27, sFID 4.6, IS 278.2, Precision 0.83,
    Recall 0.57.
Paper: AHPA Table G.20, row "DiT-XL/2" (1400 epochs): FID 2.27, sFID 4.6, IS 278.2, Precision 0.83,
    Recall 0.57.
"""

_base_ = ["_base_/backbones/dit-xl.py", "_base_/recipes/dit.py"]
