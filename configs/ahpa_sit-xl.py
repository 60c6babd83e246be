"""AHPA on SiT-XL/2: block 7 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Learning rate 2e-4 and clipping at 2.0 as in the authors' README.

Command: torchrun --nproc-per-node 8 tools/train.py configs/ahpa_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 ahpa 400000": FID 8.1, sFID 4.9, IS 112.0, Precision 0.71, Recall
    0.62.
Paper: AHPA Table 4, row "+ AHPA" (100 epochs): FID 2.15, sFID 4.38, IS 265.4, Precision 0.81,
    Recall 0.58. Train with --max-iters 500400, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table 4, row "+ AHPA" (200 epochs): FID 1.78, sFID 4.26, IS 291.8, Precision 0.82,
    Recall 0.61. Train with --max-iters 1000800, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table 4, row "+ AHPA" (400 epochs): FID 1.56, sFID 4.15, IS 308.2, Precision 0.81,
    Recall 0.63. Train with --max-iters 2001600, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table 4, row "+ AHPA" (800 epochs): FID 1.4, sFID 4.12, IS 317.5, Precision 0.81, Recall
    0.64. Train with --max-iters 4003200, sample with --sampler euler --steps 250 --cfg-scale 1.8
    --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table 6, row "+ AHPA": TS_iter_per_s 7.4, GFLOPs 119.9, EFP_M 2.5.
Paper: AHPA Table E.18, row "AHPA": FID 8.1, sFID 4.9, gsnr_avg 11.6.
Paper: AHPA Table G.20, row "+ AHPA" (100 epochs): FID 2.15, sFID 4.38, IS 265.4, Precision 0.81,
    Recall 0.58. Train with --max-iters 500400, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table G.20, row "+ AHPA" (200 epochs): FID 1.78, sFID 4.26, IS 291.8, Precision 0.82,
    Recall 0.61. Train with --max-iters 1000800, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table G.20, row "+ AHPA" (400 epochs): FID 1.56, sFID 4.15, IS 308.2, Precision 0.81,
    Recall 0.63. Train with --max-iters 2001600, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table G.20, row "+ AHPA" (800 epochs): FID 1.4, sFID 4.12, IS 317.5, Precision 0.81,
    Recall 0.64. Train with --max-iters 4003200, sample with --sampler euler --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7 (guidance assumed).
Paper: AHPA Table I.21, row "+ AHPA": TS_iter_per_s 7.4, GFLOPs 119.85, latency_ms 19.8, EFP_M 0 +
    2.5.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 7
