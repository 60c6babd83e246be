"""Static alignment of block 2 with group G4.

Command: python tools/train.py configs/static-g4_sit-b_block-2.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 1, row "block 2": FID 31.4, IS 46.5.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 2
_base_.model.alignments.main.router.groups = "G4"
