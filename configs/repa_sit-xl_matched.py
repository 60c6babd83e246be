"""REPA on SiT-XL/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 repa 400000": FID 8.5, sFID 5.14, IS 110.6, Precision 0.69,
    Recall 0.64.
Paper: AHPA Table 6, row "+ REPA": TS_iter_per_s 6.3, GFLOPs 138.5.
Paper: AHPA Table E.18, row "REPA (DINOv2-B)": FID 8.5, sFID 5.14, gsnr_avg 8.5.
Paper: AHPA Table I.21, row "+ REPA": TS_iter_per_s 6.3, GFLOPs 138.5, latency_ms 22.81.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/repa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._repa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
