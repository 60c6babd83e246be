"""REPA on block 7 of SiT-XL/2 with AHPA's optimiser, as AHPA's README trains this baseline.

The method's own block is 8: `repa_sit-xl_matched`, to which the rows of AHPA's tables lead.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl_block-7.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/repa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._repa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 7
