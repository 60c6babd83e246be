"""REG on block 8 of MMDiT, text to image on COCO 2014: REPA, and DINOv2's class token diffused beside the image.

The token is prepended to the image's. The block is REPA's for this setting, the rest the method's on SiT [inferred].

Command: python tools/train.py configs/reg_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds train2014/ and
annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = ["mmdit.py", "_base_/reg.py"]
model = _base_._reg
model.backbone = dict(type="ClassStreamMMDiT", class_width=768)
model.alignments.main.tap = 8
