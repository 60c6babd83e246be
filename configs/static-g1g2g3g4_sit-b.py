"""Static alignment of block 3 with all four groups, uniform.

Command: python tools/train.py configs/static-g1g2g3g4_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "Full Union G1-G4": no figure printed.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "G1+G2+G3+G4"
