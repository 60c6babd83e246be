"""Static alignment of block 3 with the uniform mean of group G1.

Command: python tools/train.py configs/static-g1_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "Group 1": IS 41.1, FID 34.5, sFID 6.69.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "G1"
