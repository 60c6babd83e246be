"""iREPA on DiT-B/2: REPA at block 4 with a 3 x 3 convolution and spatially normalised targets.

Gamma 0.6, weight 1. The method's settings on SiT are kept [inferred]; noise prediction and loss are
DiT's.

Command: python tools/train.py configs/irepa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["_base_/backbones/dit-b.py", "_base_/methods/irepa.py", "_base_/recipes/dit_repa.py"]
_base_.model.merge(_base_._irepa)
_base_.model.alignments.main.tap = 4
