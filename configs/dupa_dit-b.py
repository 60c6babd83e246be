"""DUPA on DiT-B/2 blocks: an encoder of 8 blocks and a decoder, two noisings of each image aligned at s.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].
Its code could not be read: the projector's widths and gain are inferred. A step draws two steps for each image.

Command: python tools/train.py configs/dupa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/dupa.py"]
model = _base_._dupa
model.backbone = dict(type="DDTDiT", encoder_depth=8)
