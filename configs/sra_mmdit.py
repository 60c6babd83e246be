"""SRA on MMDiT: block 6 aligned with block 16 of the averaged model at a cleaner time.

Text to image on COCO 2014. The blocks are not stated for this setting: 6 -> 16, those of SiT-L,
which is as deep [inferred]. The latents stay the setting's own.

Command: python tools/train.py configs/sra_mmdit.py --data COCO
Hardware: one GPU of 80 GB suggested; time not measured (150K steps of batch 256). COCO holds
    train2014/ and annotations/captions_train2014.json; CLIP's weights come from the hub.
Paper: the method's own, 150K steps: FID 4.85, PickScore 21.14 (there REPA 4.60 and 20.88, none 5.86
    and 20.05). Sample with --cfg-scale 2.
"""

_base_ = ["_base_/backbones/mmdit.py", "_base_/methods/sra.py", "_base_/recipes/mmdit-coco.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 6
_base_.model.priors.ema.block = 16
_base_.model.alignments.main.projector.hidden_dim = 1536
_base_.model.tokenizer.source = "stabilityai/sd-vae-ft-mse"
_base_.model.alignments.main.projector.init = "torch"
