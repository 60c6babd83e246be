"""AHPA with a lookup table of t (10 bins) as router.

The paper gives no number of bins; 10 uniform ones are from its public review.

Command: python tools/train.py configs/ahpa_sit-b_router-lut.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 4": FID 27.2.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router = dict(type="LUTRouter", groups="4/4", bins=10)
