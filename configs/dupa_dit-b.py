"""DUPA on DiT-B/2: two noisings of each image, aligned after an encoder of 8 blocks.

Its code could not be read: the projector's widths and gain are inferred. A step draws two noise
steps for each image. The method's settings on SiT are kept [inferred]; noise prediction and loss
are DiT's.

Command: python tools/train.py configs/dupa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["_base_/backbones/dit-b_decoupled.py", "_base_/methods/dupa.py", "_base_/recipes/dit.py"]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
