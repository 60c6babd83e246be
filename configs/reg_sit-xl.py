"""REG on SiT-XL/2: REPA at block 8, and DINOv2's class token diffused alongside the image.

All 257 tokens are aligned; the class token's loss has weight 0.03: the method's published recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/reg_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 3.4.
Paper: the method's own, 4M steps without guidance: FID 1.8. Train with --max-iters 4000000.
Paper: AHPA Table 4, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77, Recall
    0.66. Train with --max-iters 4003200, sample with --sampler sde --steps 250 --cfg-scale 2.3
    --cfg-interval 0 0.85.
Paper: AHPA Table G.20, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77,
    Recall 0.66. Train with --max-iters 4003200, sample with --sampler sde --steps 250 --cfg-scale
    2.3 --cfg-interval 0 0.85.
"""

_base_ = [
    "_base_/backbones/sit-xl_class-stream.py",
    "_base_/methods/reg.py",
    "_base_/recipes/repa.py",
]
_base_.model.merge(_base_._reg)
_base_.model.alignments.main.tap = 8
