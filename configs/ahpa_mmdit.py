"""AHPA on MMDiT: block 6 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Text to image on COCO 2014. The block is not stated for this setting: 6, a quarter of the depth
[inferred]; learning rate and clipping are REPA's.

Command: python tools/train.py configs/ahpa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: AHPA Table 5, row "+ AHPA": FID 4.52, PickScore 21.33 (elsewhere in AHPA PickScore 21.03).
    Sample with --sampler sde --steps 250 --cfg-scale 2.
Paper: AHPA Table C.12, row "+ AHPA ODE-50": FID 5.02. Sample with --sampler euler --steps 50
    --cfg-scale 2.
Paper: AHPA Table C.12, row "+ AHPA SDE-250": FID 4.52. Sample with --sampler sde --steps 250
    --cfg-scale 2.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/methods/ahpa.py", "_base_/recipes/mmdit-coco.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.tokenizer.statistics = None  # as in REPA's text-to-image code
_base_.model.alignments.main.tap = 6
