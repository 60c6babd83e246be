"""Vanilla SiT-B/2 on the trigonometric path.

Command: python tools/train.py configs/sit-b_path-cosine.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/sit.py"]
_base_.model.flow.path = dict(type="CosinePath")
