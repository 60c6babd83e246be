"""DUPA on MMDiT blocks, text to image on COCO 2014: an encoder of 8 joint blocks and a decoder, two noisings aligned at s.

The method is on SiT's blocks; what its split means with text is inferred (see DDTMMDiT), as are the projector's widths.

Command: python tools/train.py configs/dupa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds train2014/ and
annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: not a row of a table.
"""

_base_ = ["mmdit.py", "_base_/dupa.py"]
model = _base_._dupa
model.backbone = dict(type="DDTMMDiT", encoder_depth=8)
