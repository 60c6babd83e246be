"""REPA on the kept tokens of a route (as MaskAlign, arXiv:2606.08788) on SiT-B/2, block 4.

A random half of the tokens skips blocks 2 to 8; the others are aligned with their own patch tokens
of DINOv2-B. MaskAlign's block that mixes tokens before the mask is not built (see its page).

Command: python tools/train.py configs/tread-repa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (our combination).
"""

_base_ = [
    "_base_/backbones/sit-b.py",
    "_base_/methods/repa.py",
    "_base_/methods/tread.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._repa)
_base_.model.merge(_base_._tread)
_base_.model.alignments.main.tap = 4
