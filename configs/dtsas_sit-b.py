"""SRA with DTS-AS (arXiv:2607.02508) on SiT-B/2: block 3 aligned with block 8 of the average.

Two groups of tokens, each with a time of its own, which attend only to themselves. The recipe is
SRA's [inferred].

Command: python tools/train.py configs/dtsas_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2607.02508).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/dtsas.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._dtsas)
_base_.model.alignments.main.tap = 3
_base_.model.priors.ema.block = 8
_base_.model.alignments.main.projector.hidden_dim = 1536
