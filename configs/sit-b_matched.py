"""Vanilla SiT-B/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

The baseline of AHPA's tables. The figures of its rows at 400K steps are SiT's own, which are of the
recipe of `sit-b`: learning rate 1e-4, no clipping.

Command: python tools/train.py configs/sit-b_matched.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "Vanilla SiT-B/2": IS 43.7, FID 33.0, sFID 6.46.
Paper: AHPA Table 3, row "SiT-B/2 none 400000": FID 33.0, sFID 6.46, IS 43.7, Precision 0.53, Recall
    0.63.
Paper: AHPA Table B.10, row "Vanilla SiT-B/2, no supervisor" (zero-shot): no figure printed.
Paper: AHPA Table B.11, row "SD-VAE Vanilla": FID 33.0, sFID 6.46.
Paper: AHPA Table D.13, row "(a) Vanilla SiT": FID 33.0, sFID 6.46.
Paper: AHPA Table D.15, row "Vanilla SiT-B": IS 43.7, FID 33.0, Precision 0.53.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/ahpa.py"]
_base_.model.tokenizer.statistics = "sd-imagenet"
