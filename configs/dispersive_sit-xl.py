"""Dispersive Loss (arXiv:2506.09027) on SiT-XL/2: samples repel each other in block 7.

Weight 0.5, tau 0.5, pools of 16, a quarter of the depth: the setting of the authors' JAX code. The
recipe is SiT's [inferred].

Command: torchrun --nproc-per-node 8 tools/train.py configs/dispersive_sit-xl.py
    --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's figures (arXiv:2506.09027) are not at hand; not a row of a table.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/dispersive.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._dispersive)
_base_.model.alignments.main.tap = 7
