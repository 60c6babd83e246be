"""DUPA on SiT-B/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: python tools/train.py configs/dupa_sit-b_matched.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b_decoupled.py", "_base_/methods/dupa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._dupa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.views.tap = 8
