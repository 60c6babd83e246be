"""SRA 2 on block 2 of DiT-B/2: the latent itself as the target (no code exists; widths inferred).

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].

Command: python tools/train.py configs/sra2_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/sra2.py"]
model = _base_._sra2
