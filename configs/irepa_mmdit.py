"""iREPA on block 8 of MMDiT, text to image on COCO 2014: REPA with a 3 x 3 convolution and normalised targets.

The block is REPA's for this setting, the rest the method's on SiT [inferred].

Command: python tools/train.py configs/irepa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds train2014/ and
annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = ["mmdit.py", "_base_/irepa.py"]
model = _base_._irepa
model.alignments.main.tap = 8
