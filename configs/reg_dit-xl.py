"""REG on DiT-XL/2: REPA at block 8, and DINOv2's class token diffused alongside the image.

The class token is noised by the same steps; its noise is predicted without a variance, by a plain
mean square of weight 0.03. The method's settings on SiT are kept [inferred]; noise prediction and
loss are DiT's.

Command: torchrun --nproc-per-node 8 tools/train.py configs/reg_dit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = [
    "_base_/backbones/dit-xl_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/dit_repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 8
