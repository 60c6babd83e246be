"""REG on SiT-B/2: REPA at block 4, and DINOv2's class token diffused alongside the image.

All 257 tokens are aligned; the class token's loss has weight 0.03: the method's published recipe.

Command: python tools/train.py configs/reg_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 15.2, sFID 6.69, IS 94.6.
"""

_base_ = [
    "_base_/backbones/sit-b_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 4
