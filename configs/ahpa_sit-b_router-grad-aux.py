"""AHPA whose criteria see a detached target; the router is trained by a term of its own.

The term is a tenth as strong, and the entropy floor is added. With a weight of 1 and no entropy
term, the gradients would be those of ahpa_sit-b.py.

Command: python tools/train.py configs/ahpa_sit-b_router-grad-aux.py --data IMAGENET/train
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
_base_.model.alignments.main.router_grad = "aux"
_base_.model.alignments.main.router_weight = 0.1
