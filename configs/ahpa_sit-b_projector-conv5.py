"""AHPA with 5 3x3 convolutions, GroupNorm and SiLU between.

Command: python tools/train.py configs/ahpa_sit-b_projector-conv5.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.13, row "(k)": FID 28.1, sFID 6.41.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.projector = dict(type="ConvProjector", layers=5, kernel=3)
