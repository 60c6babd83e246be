"""SRA on block 6 of DiT-L/2: the averaged model at a cleaner step as the teacher, smooth L1, weight 0.2.

Blocks 6 -> 16 as on SiT-L [inferred]; as in SRA's DiT code the step is lowered by a whole number of 0 .. 199 and held in
1 .. 999.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra_dit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["sra_dit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    priors=dict(ema=dict(block=16)),
    alignments=dict(main=dict(tap=6, projector=dict(hidden_dim=2048))),
)
