"""SRA on SiT-XL/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_sit-xl_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 6, row "+ SRA": TS_iter_per_s 5.1, GFLOPs 197.6.
Paper: AHPA Table I.21, row "+ SRA": TS_iter_per_s 5.1, GFLOPs 197.57, latency_ms 30.9.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._sra)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 20
_base_.model.alignments.main.projector.hidden_dim = 2304
