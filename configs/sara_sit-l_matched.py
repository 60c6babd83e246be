"""SARA on SiT-L/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sara_sit-l_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/sara.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._sara)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
