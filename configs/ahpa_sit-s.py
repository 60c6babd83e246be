"""AHPA on SiT-S/2: block 3 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Learning rate 2e-4 and clipping at 2.0 as in the authors' README.

Command: python tools/train.py configs/ahpa_sit-s.py --data IMAGENET/train
Hardware: 1 GPU suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-s.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
