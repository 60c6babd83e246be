"""DUPA on SiT-L/2: two noisings of each image, aligned after an encoder of 8 blocks.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of
SiT at the same batch.

Command: torchrun --nproc-per-node 4 tools/train.py configs/dupa_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 11.1, IS 104.8 (DDT 14.9, two views
    without alignment 12.5).
"""

_base_ = [
    "_base_/backbones/sit-l_decoupled.py",
    "_base_/methods/dupa.py",
    "_base_/recipes/sit_noflip.py",
]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
