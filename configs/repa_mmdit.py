"""REPA (arXiv:2410.06940) on MMDiT: block 8 aligned with DINOv2-B's patch tokens.

Text to image on COCO 2014: REPA's own setting.

Command: python tools/train.py configs/repa_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: AHPA Table 5, row "+ REPA": FID 4.74, PickScore 20.9. Sample with --sampler sde --steps 250
    --cfg-scale 2.
Paper: AHPA Table C.12, row "+ REPA ODE-50": FID 5.37. Sample with --sampler euler --steps 50
    --cfg-scale 2.
Paper: AHPA Table C.12, row "+ REPA SDE-250": FID 4.74. Sample with --sampler sde --steps 250
    --cfg-scale 2.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/methods/repa.py", "_base_/recipes/mmdit-coco.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.init = "torch"
