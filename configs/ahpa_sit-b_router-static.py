"""G3 and G4 with uniform, constant weights.

Command: python tools/train.py configs/ahpa_sit-b_router-static.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "G3 u G4": IS 51.6, FID 29.7, sFID 6.04.
Paper: AHPA Table D.15, row "G3uG4 Static Uniform": IS 51.6, FID 29.7, Precision 0.58.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router = dict(type="StaticRouter", groups="4/4")
