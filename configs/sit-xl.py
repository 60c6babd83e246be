"""Vanilla SiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: SiT (arXiv:2401.08740), 400K steps without guidance, SDE of 250 steps: FID 17.2.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/recipes/sit.py"]
