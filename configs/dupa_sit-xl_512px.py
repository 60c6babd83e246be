"""DUPA on SiT-XL/2 blocks at 512 px: two noisings of each image, 1024 tokens each.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dupa_sit-xl_512px.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = [
    "_base_/backbones/sit-xl_decoupled.py",
    "_base_/methods/dupa.py",
    "_base_/recipes/sit_noflip.py",
]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
_base_.model.resolution = 512
