"""REG on SiT-XL/2: REPA at block 8, and DINOv2's class token diffused alongside the image.

All 257 tokens are aligned; the class token's loss has weight 0.03: the method's published recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/reg_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, without guidance: 400K FID 3.4, 4M 1.8; guided (2.3, t up to 0.85) 800
    epochs: 1.36.
Paper: AHPA Table 4, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77, Recall
    0.66.
Paper: AHPA Table G.20, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77,
    Recall 0.66.
"""

_base_ = [
    "_base_/backbones/sit-xl_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 8
