"""SRA on SiT-B/2: block 3 aligned with block 8 of the averaged model at a cleaner time.

A two-layer MLP, smooth L1, weight 0.2, clipping at 1.0: the paper's recipe.

Command: python tools/train.py configs/sra_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 29.10.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/sra.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 3
_base_.model.priors.ema.block = 8
_base_.model.alignments.main.projector.hidden_dim = 1536
