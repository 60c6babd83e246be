"""Uniform mean of group 3 (mid) of the SD encoder on block 7 of SiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/static-g3_sit-xl.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table E.18, row "Uniform (mid, G3)": FID 14.1, sFID 6.25, gsnr_avg 7.0.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 7
_base_.model.alignments.main.router.groups = "G3"
