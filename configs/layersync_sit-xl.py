"""LayerSync (arXiv:2510.12581) on SiT-XL/2: block 8 aligned with block 16 of the same pass.

Cosine without a projector, weight 0.2, horizontal flips: the setting of the authors' code.

Command: torchrun --nproc-per-node 8 tools/train.py configs/layersync_sit-xl.py
    --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's figures (arXiv:2510.12581) are not at hand; not a row of a table.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/layersync.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._layersync)
_base_.model.alignments.main.tap = 8
_base_.model.priors.later.block = 16
