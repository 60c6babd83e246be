"""SRA on block 8 of DiT-XL/2: the averaged model at a cleaner step as the teacher, smooth L1, weight 0.2.

As SRA's DiT code: blocks 8 -> 16, the step lowered by a whole number of 0 .. 199 and held in 1 .. 999.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_dit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["sra_dit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    priors=dict(ema=dict(block=16)),
    alignments=dict(main=dict(tap=8, projector=dict(hidden_dim=2304))),
)
