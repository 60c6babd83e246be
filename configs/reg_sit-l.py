"""REG on SiT-L/2: REPA at block 8, and DINOv2's class token diffused alongside the image.

All 257 tokens are aligned; the class token's loss has weight 0.03: the method's published recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/reg_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 4.6.
"""

_base_ = [
    "_base_/backbones/sit-l_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 8
