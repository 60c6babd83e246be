"""REPA (arXiv:2410.06940) on SiT-XL/2: block 8 aligned with DINOv2-B's patch tokens.

A three-layer MLP, cosine, weight 0.5: the method's published recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 7.9.
Paper: the method's own, 4M steps without guidance: FID 5.9. Train with --max-iters 4000000.
Paper: AHPA Table 4, row "+ REPA" (800 epochs): FID 1.42, sFID 4.7, IS 311.4, Precision 0.8, Recall
    0.63 (in its own paper IS 305.7, Recall 0.65). Train with --max-iters 4003200, sample with
    --sampler sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
Paper: AHPA Table G.20, row "+ REPA" (800 epochs): FID 1.42, sFID 4.7, IS 311.4, Precision 0.8,
    Recall 0.63 (in its own paper IS 305.7, Recall 0.65). Train with --max-iters 4003200, sample
    with --sampler sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/repa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 8
