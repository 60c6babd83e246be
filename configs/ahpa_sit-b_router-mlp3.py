"""AHPA with a router of 3 linear layers.

Command: python tools/train.py configs/ahpa_sit-b_router-mlp3.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 6": FID 26.1.
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.alignments.main.router.depth = 3
