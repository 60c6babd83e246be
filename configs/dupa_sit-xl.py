"""DUPA on SiT-XL/2: two noisings of each image, aligned after an encoder of 8 blocks.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of
SiT at the same batch.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dupa_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, without guidance: 400K FID 8.71, sFID 4.65, IS 114.6; 400 epochs 5.92,
    guided 1.46.
"""

_base_ = ["_base_/backbones/sit-xl_decoupled.py", "_base_/methods/dupa.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
