"""AHPA with a sinusoidal encoding of t in the router.

Command: python tools/train.py configs/ahpa_sit-b_encoding-sinusoidal.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 1": FID 27.0.
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.alignments.main.router.encoding = dict(type="SinusoidalEncoding", dim=128)
