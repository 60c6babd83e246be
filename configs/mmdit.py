"""Vanilla MMDiT, text to image on COCO 2014: REPA's setting without alignment.

Command: python tools/train.py configs/mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: AHPA Table 5, row "MMDiT": FID 5.3, PickScore 20.54. Sample with --sampler sde --steps 250
    --cfg-scale 2.
Paper: AHPA Table C.12, row "MMDiT ODE-50": FID 6.05. Sample with --sampler euler --steps 50
    --cfg-scale 2.
Paper: AHPA Table C.12, row "MMDiT SDE-250": FID 5.3. Sample with --sampler sde --steps 250
    --cfg-scale 2.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/recipes/mmdit-coco.py"]
