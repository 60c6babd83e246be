"""Vanilla DiT-B/2.

Command: python tools/train.py configs/dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/dit-b.py", "_base_/recipes/dit.py"]
