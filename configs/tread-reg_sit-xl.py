"""REG on the kept tokens of a route (as MaskAlign, arXiv:2606.08788) on SiT-XL/2, block 8.

A random half of the grid tokens skips blocks 2 to 8; the class token and the others are aligned
with their own tokens of DINOv2-B. MaskAlign's block that mixes tokens before the mask is not built
(see its page).

Command: torchrun --nproc-per-node 8 tools/train.py configs/tread-reg_sit-xl.py
    --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2606.08788, whose model has the mixing block: REG 3.4 to 2.8).
"""

_base_ = [
    "_base_/backbones/sit-xl_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/methods/tread.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.merge(_base_._tread)
_base_.model.alignments.main.tap = 8
