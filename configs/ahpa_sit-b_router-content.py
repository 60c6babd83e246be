"""AHPA with a content-adaptive router (pooled tokens of the aligned block beside t).

Command: python tools/train.py configs/ahpa_sit-b_router-content.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.17, row "Exp 3": FID 29.6.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router = dict(type="ContentRouter", groups="4/4")
