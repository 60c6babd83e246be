"""Vanilla SiT-XL/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

The baseline of AHPA's tables. The figures of its rows at 400K steps are SiT's own, which are of the
recipe of `sit-xl`: learning rate 1e-4, no clipping.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sit-xl_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 none 400000": FID 17.2, sFID 5.95, IS 83.1, Precision 0.64,
    Recall 0.63.
Paper: AHPA Table 6, row "SiT-XL/2": TS_iter_per_s 8.1, GFLOPs 114.5.
Paper: AHPA Table I.21, row "SiT-XL/2": TS_iter_per_s 8.1, GFLOPs 114.46, latency_ms 18.05.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/recipes/ahpa.py"]
_base_.model.tokenizer.statistics = "sd-imagenet"
