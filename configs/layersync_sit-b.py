"""LayerSync (arXiv:2510.12581) on SiT-B/2: block 3 aligned with block 7 of the same pass.

Cosine without a projector, weight 0.2. The blocks are those of SiT-XL, 8 and 16 of 28, at the same
shares of the depth [inferred]: the authors' code gives SiT-XL's only.

Command: python tools/train.py configs/layersync_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2510.12581).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/layersync.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._layersync)
_base_.model.alignments.main.tap = 3
_base_.model.priors.later.block = 7
