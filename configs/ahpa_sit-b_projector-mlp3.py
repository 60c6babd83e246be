"""AHPA with an MLP projector of 3 layers (hidden width not given in the paper; 2048 as in REPA).

Command: python tools/train.py configs/ahpa_sit-b_projector-mlp3.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.13, row "(g)": FID 26.8, sFID 6.1.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.projector = dict(type="MLPProjector", depth=3, hidden_dim=2048)
