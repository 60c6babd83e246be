"""DUPA on SiT-XL/2: two noisings of each image, aligned after an encoder of 8 blocks.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of
SiT at the same batch.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dupa_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 8.71, sFID 4.65, IS 114.6.
Paper: the method's own, 400 epochs without guidance: FID 5.92. Train with --max-iters 2001600.
Paper: the method's own, 400 epochs: FID 1.46, sFID 4.45, IS 296.2. Train with --max-iters 2001600,
    sample with --cfg-scale 1.6 --cfg-interval 0 0.7.
"""

_base_ = [
    "_base_/backbones/sit-xl_decoupled.py",
    "_base_/methods/dupa.py",
    "_base_/recipes/sit_noflip.py",
]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
