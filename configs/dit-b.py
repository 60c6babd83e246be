"""Vanilla DiT-B/2.

Command: python tools/train.py configs/dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/dit_imagenet.py"]
model = dict(backbone=dict(depth=12, hidden_size=768, num_heads=12))
