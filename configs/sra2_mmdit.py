"""SRA 2 on MMDiT: block 8 aligned with the latent itself.

Text to image on COCO 2014. No code exists, the widths are inferred.

Command: python tools/train.py configs/sra2_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: AHPA Table 5, row "+ SRA 2": FID 4.91, PickScore 20.76. Sample with --sampler sde --steps 250
    --cfg-scale 2.
Paper: AHPA Table C.12, row "+ SRA 2 ODE-50": FID 5.65. Sample with --sampler euler --steps 50
    --cfg-scale 2.
Paper: AHPA Table C.12, row "+ SRA 2 SDE-250": FID 4.91. Sample with --sampler sde --steps 250
    --cfg-scale 2.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/methods/sra2.py", "_base_/recipes/mmdit-coco.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 1536
