"""REPA on SiT-L/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/repa_sit-l_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-L/2 repa 400000": FID 12.6, sFID 5.25, IS 95.0, Precision 0.67, Recall
    0.64.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/repa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._repa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
