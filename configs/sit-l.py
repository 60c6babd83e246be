"""Vanilla SiT-L/2.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: SiT (arXiv:2401.08740), 400K steps without guidance, SDE of 250 steps: FID 18.8.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/recipes/sit.py"]
