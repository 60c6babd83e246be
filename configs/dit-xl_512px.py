"""Vanilla DiT-XL/2 at 512 px.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dit-xl_512px.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "DiT-XL/2" (600 epochs): FID 3.04, sFID 5.02, IS 240.8, Precision 0.84,
    Recall 0.54. Train with --max-iters 3002400, sample with --sampler ddpm --steps 250 --cfg-scale
    1.5 --cfg-channels 3.
"""

_base_ = ["_base_/backbones/dit-xl.py", "_base_/recipes/dit.py"]
_base_.model.resolution = 512
