"""SRA 2 on SiT-XL/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra2_sit-xl_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 sra2 400000": FID 13.8, sFID 5.1, IS 94.3, Precision 0.65, Recall
    0.64.
Paper: AHPA Table 6, row "+ SRA 2": TS_iter_per_s 7.2, GFLOPs 118.6.
Paper: AHPA Table E.18, row "SRA 2": FID 13.8, sFID 5.1, gsnr_avg 7.2.
Paper: AHPA Table I.21, row "+ SRA 2": TS_iter_per_s 7.2, GFLOPs 118.55, latency_ms 19.2.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra2.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._sra2)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 2304
