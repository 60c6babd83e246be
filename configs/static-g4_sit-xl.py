"""Uniform mean of group 4 (deep) of the SD encoder on block 7 of SiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/static-g4_sit-xl.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table E.18, row "Uniform (deep, G4)": FID 11.2, sFID 5.36, gsnr_avg 7.3.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 7
_base_.model.alignments.main.router.groups = "G4"
