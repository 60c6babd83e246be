"""iREPA on MMDiT: REPA at block 8 with a 3 x 3 convolution and spatially normalised targets.

Text to image on COCO 2014. The block is REPA's for this setting, the rest the method's on SiT
[inferred].

Command: python tools/train.py configs/irepa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/methods/irepa.py", "_base_/recipes/mmdit-coco.py"]
_base_.model.merge(_base_._irepa)
_base_.model.tokenizer.statistics = None  # as in REPA's text-to-image code
_base_.model.alignments.main.tap = 8
