"""AHPA with a 1x1 convolution (the printed 2.5 M parameters are nearer to it).

Command: python tools/train.py configs/ahpa_sit-b_projector-conv1x1.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.projector = dict(type="ConvProjector", kernel=1)
