"""AHPA with a sinusoidal encoding of t in the router.

Command: python tools/train.py configs/ahpa_sit-b_encoding-sinusoidal.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 1": FID 27.0.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.encoding = dict(type="SinusoidalEncoding", dim=128)
