"""REG on MMDiT: REPA at block 8, and DINOv2's class token diffused alongside the image.

Text to image on COCO 2014; the class token is prepended to the image's. The block is REPA's for
this setting, the rest the method's on SiT [inferred].

Command: python tools/train.py configs/reg_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = [
    "_base_/backbones/mmdit_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/mmdit-coco.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.init = "torch"
