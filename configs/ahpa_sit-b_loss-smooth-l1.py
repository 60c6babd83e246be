"""AHPA with smooth L1 instead of cosine (beta not given in the paper; 0.05 as in SRA).

Command: python tools/train.py configs/ahpa_sit-b_loss-smooth-l1.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.13, row "(c)": FID 26.9, sFID 5.95.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.criteria = dict(smooth_l1=dict(type="SmoothL1Loss", beta=0.05))
