"""SRA on block 6 of MMDiT, text to image on COCO 2014: the averaged model at a cleaner time as the teacher.

The blocks are not stated for this setting: 6 -> 16, those of SiT-L, which has as many [inferred].

Command: python tools/train.py configs/sra_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds train2014/ and
annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: the method's own: FID 4.85, PickScore 21.14 (there REPA 4.60 and 20.88, none 5.86 and 20.05).
"""

_base_ = ["mmdit.py", "_base_/sra.py"]
model = _base_._sra
model.priors.ema.block, model.alignments.main.tap = 16, 6
