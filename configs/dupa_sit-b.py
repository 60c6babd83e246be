"""DUPA on SiT-B/2: two noisings of each image, aligned after an encoder of 8 blocks.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of
SiT at the same batch.

Command: python tools/train.py configs/dupa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = [
    "_base_/backbones/sit-b_decoupled.py",
    "_base_/methods/dupa.py",
    "_base_/recipes/sit_noflip.py",
]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
