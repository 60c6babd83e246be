"""AHPA on block 7 of SiT-XL/2 at 512 px (64 x 64 latents, 1024 tokens, 32 x 32 targets).

Command: torchrun --nproc-per-node 8 tools/train.py configs/ahpa_sit-xl_512px.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "+ AHPA" (100 epochs): FID 2.28, sFID 4.16, IS 261.4, Precision 0.84,
    Recall 0.56. Train with --max-iters 500400, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 7
_base_.model.resolution = 512
