"""AHPA on DiT-B/2: block 3 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Learning rate 2e-4 and clipping at 2.0 as on SiT [inferred].

Command: python tools/train.py configs/ahpa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/dit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/dit_ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
