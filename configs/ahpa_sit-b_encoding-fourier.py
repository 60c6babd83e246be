"""AHPA with random Fourier features of t in the router (sigma not given in the paper; 1.0).

Command: python tools/train.py configs/ahpa_sit-b_encoding-fourier.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 2": FID 26.8.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.encoding = dict(type="FourierEncoding", dim=128, sigma=1.0)
