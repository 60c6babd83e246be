"""Vanilla SiT-XL/2 for 7M steps.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sit-xl_iters-7m.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (7M steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 none 7000000" (1400 epochs): FID 8.3, sFID 6.32, IS 131.7,
    Precision 0.68, Recall 0.67. Train with --max-iters 7000000.
Paper: AHPA Table 4, row "SiT-XL/2" (1400 epochs): FID 2.06, sFID 4.5, IS 270.3, Precision 0.82,
    Recall 0.59. Train with --max-iters 7005600, sample with --sampler sde --steps 250 --cfg-scale
    1.5.
Paper: AHPA Table G.20, row "SiT-XL/2" (1400 epochs): FID 2.06, sFID 4.5, IS 270.3, Precision 0.82,
    Recall 0.59. Train with --max-iters 7005600, sample with --sampler sde --steps 250 --cfg-scale
    1.5.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/recipes/sit.py"]
_base_.train_cfg.max_iters = 7_000_000
