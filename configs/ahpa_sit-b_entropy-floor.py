"""AHPA with a floor under the router's entropies, half of the largest.

The floor keeps the router from collapsing onto the easiest levels.

Command: python tools/train.py configs/ahpa_sit-b_entropy-floor.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = [
    "_base_/backbones/sit-b.py",
    "_base_/methods/ahpa_entropy-floor.py",
    "_base_/recipes/ahpa.py",
]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
