"""SRA 2 on DiT-B/2: block 2 aligned with the latent itself.

No code exists, the widths are inferred. The method's settings on SiT are kept [inferred]; noise
prediction and loss are DiT's.

Command: python tools/train.py configs/sra2_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["_base_/backbones/dit-b.py", "_base_/methods/sra2.py", "_base_/recipes/dit.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 2
_base_.model.alignments.main.projector.hidden_dim = 1536
