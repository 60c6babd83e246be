"""SRA on block 3 of DiT-B/2: the averaged model at a cleaner step as the teacher, smooth L1, weight 0.2.

As SRA's DiT code: the step is lowered by a whole number of 0 .. 199 and held in 1 .. 999. The blocks, 3 -> 8, are those
of SiT-B [inferred].

Command: python tools/train.py configs/sra_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/sra.py"]
model = _base_._sra
model.priors.ema.update(steps=1000, least=0.001)
