"""SRA on SiT-B/2: block 3 aligned with block 8 of the averaged model at a cleaner time, cosine.

The default of SRA's code since July 2026: a cosine over tokens at a constant weight of 0.5, instead
of smooth L1. `alignments.main.criteria.cosine.over="channels"` compares each token.

Command: python tools/train.py configs/sra_sit-b_cosine.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method with a cosine is known here.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/sra_cosine.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 3
_base_.model.priors.ema.block = 8
_base_.model.alignments.main.projector.hidden_dim = 1536
