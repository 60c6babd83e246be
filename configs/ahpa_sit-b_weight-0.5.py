"""AHPA with weight 0.5.

Command: python tools/train.py configs/ahpa_sit-b_weight-0.5.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.13, row "(d)": FID 27.8, sFID 6.3.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.weight = 0.5
