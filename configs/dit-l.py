"""Vanilla DiT-L/2.

Command: torchrun --nproc-per-node 4 tools/train.py configs/dit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/dit-l.py", "_base_/recipes/dit.py"]
