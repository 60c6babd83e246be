"""SRA on DiT-L/2: block 6 aligned with block 16 of the averaged model at a cleaner time, cosine.

The default of SRA's code since July 2026: a cosine over tokens at a constant weight of 0.5, instead
of smooth L1. `alignments.main.criteria.cosine.over="channels"` compares each token.
The rest is SRA's DiT code; the blocks and that weight are inferred.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra_dit-l_cosine.py --data
    IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method with a cosine is known here.
"""

_base_ = [
    "_base_/backbones/dit-l.py",
    "_base_/methods/sra_dit_cosine.py",
    "_base_/recipes/dit_sra.py",
]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 6
_base_.model.priors.ema.block = 16
_base_.model.alignments.main.projector.hidden_dim = 2048
