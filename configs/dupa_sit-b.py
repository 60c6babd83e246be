"""DUPA on SiT-B/2 blocks: a condition encoder of 8 blocks and a velocity decoder, two noisings of each image aligned at s.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of SiT at the same batch.

Command: python tools/train.py configs/dupa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["sit-b.py", "_base_/dupa.py"]
model = _base_._dupa
model.backbone = dict(type="DDT", encoder_depth=8)
