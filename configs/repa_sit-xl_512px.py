"""REPA on block 8 of SiT-XL/2 at 512 px; DINOv2 sees 448 px, a 32 x 32 grid.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl_512px.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/repa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 8
_base_.model.resolution = 512
