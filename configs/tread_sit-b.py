"""TREAD (arXiv:2501.04765) on SiT-B/2: a random half of the tokens skips blocks 2 to 8 in training.

No target; the recipe is SiT's [inferred], and so is counting the blocks from 1.

Command: python tools/train.py configs/tread_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2501.04765).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/tread.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._tread)
