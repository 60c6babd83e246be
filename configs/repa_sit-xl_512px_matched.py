"""REPA on SiT-XL/2 at 512 px with AHPA's optimiser (lr 2e-4, clip 2.0).

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl_512px_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "+ REPA" (100 epochs): FID 2.37, sFID 4.2, IS 253.7, Precision 0.83,
    Recall 0.56. Train with --max-iters 500400, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/repa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._repa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
_base_.model.resolution = 512
