"""SRA on DiT-XL/2: block 8 aligned with block 16 of the averaged model at a cleaner time.

As in SRA's DiT code: blocks 8 -> 16; the teacher's step is lower by a whole number of 0 .. 199, at
least 1; smooth L1 of weight 0.04, clipping at 1.0, no flips. With smooth L1, DiT-XL is reported to
diverge (issue 7 of SRA's repository): `sra_dit-xl_cosine` is the code's default since July 2026.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_dit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["_base_/backbones/dit-xl.py", "_base_/methods/sra_dit.py", "_base_/recipes/dit_sra.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 16
_base_.model.alignments.main.projector.hidden_dim = 2304
