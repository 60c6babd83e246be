"""Vanilla SiT-B/2.

Command: python tools/train.py configs/sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: SiT (arXiv:2401.08740), 400K steps without guidance, SDE of 250 steps: FID 33.0.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/sit.py"]
