"""Static alignment of block 3 with the uniform mean of group G2.

Command: python tools/train.py configs/static-g2_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "Group 2": IS 41.8, FID 35.1, sFID 6.38.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "G2"
