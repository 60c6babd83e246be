"""Vanilla SiT-S/2.

Command: python tools/train.py configs/sit-s.py --data IMAGENET/train
Hardware: 1 GPU suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-s.py", "_base_/recipes/sit.py"]
