"""SRA 2 on SiT-B/2: block 2 aligned with the latent itself.

A five-layer MLP, smooth L1; no code exists, the widths are inferred.

Command: python tools/train.py configs/sra2_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 28.89.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/sra2.py", "_base_/recipes/sit_noflip.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 2
_base_.model.alignments.main.projector.hidden_dim = 1536
