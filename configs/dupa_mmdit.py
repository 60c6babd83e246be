"""DUPA on MMDiT: two noisings of each image, aligned after an encoder of 8 blocks.

Text to image on COCO 2014. The method is on SiT's blocks; what its split means with text is
inferred (see DDTMMDiT), as are the projector's widths.

Command: python tools/train.py configs/dupa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = [
    "_base_/backbones/mmdit_decoupled.py",
    "_base_/methods/dupa.py",
    "_base_/recipes/mmdit-coco.py",
]
_base_.model.merge(_base_._dupa)
_base_.model.alignments.views.tap = 8
