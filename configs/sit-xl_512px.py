"""Vanilla SiT-XL/2 at 512 px.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sit-xl_512px.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "SiT-XL/2" (600 epochs): FID 2.62, sFID 4.18, IS 252.2, Precision 0.84,
    Recall 0.57. Train with --max-iters 3002400, sample with --sampler sde --steps 250 --cfg-scale
    1.5.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/recipes/sit.py"]
_base_.model.resolution = 512
