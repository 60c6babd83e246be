"""Vanilla SiT-L/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

The baseline of AHPA's tables. The figures of its rows at 400K steps are SiT's own, which are of the
recipe of `sit-l`: learning rate 1e-4, no clipping.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sit-l_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-L/2 none 400000": FID 18.8, sFID 5.29, IS 72.0, Precision 0.64, Recall
    0.64.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/recipes/ahpa.py"]
_base_.model.tokenizer.statistics = "sd-imagenet"
