"""Static alignment of block 4 with group G4.

Command: python tools/train.py configs/static-g4_sit-b_block-4.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 1, row "block 4": FID 31.6, IS 47.9.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 4
_base_.model.alignments.main.router.groups = "G4"
