"""Vanilla SiT-B/2 with logit-normal t.

Command: python tools/train.py configs/sit-b_t-logitnormal.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/sit.py"]
_base_.model.flow.timesteps = dict(type="LogitNormalTimesteps")
