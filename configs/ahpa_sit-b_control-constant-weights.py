"""The control of AHPA: its weights of levels and groups are learned once, for all t.

A lookup table with one bin. If it does as well as `ahpa_sit-b`, learning the weights is what helps
and not their dependence on t: the first demand of the paper's public review.

Command: python tools/train.py configs/ahpa_sit-b_control-constant-weights.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router = dict(type="LUTRouter", groups="4/4", bins=1)
