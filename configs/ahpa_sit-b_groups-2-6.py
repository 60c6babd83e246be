"""AHPA with two levels in the middle group, six in the deep one.

On Stable Diffusion's encoder this is also the grouping by resolution.

Command: python tools/train.py configs/ahpa_sit-b_groups-2-6.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.14, row "G3=2, G4=6": FID 26.3, sFID 5.95, IS 50.8.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "2/6"
