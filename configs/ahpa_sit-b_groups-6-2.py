"""AHPA with six levels in the middle group, two in the deep one.

Command: python tools/train.py configs/ahpa_sit-b_groups-6-2.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.14, row "G3=6, G4=2": FID 27.1, sFID 6.12, IS 50.5.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "6/2"
