"""REPA on SiT-B/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: python tools/train.py configs/repa_sit-b_matched.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-B/2 repa 400000": FID 27.2, sFID 6.8, IS 54.9, Precision 0.57, Recall
    0.64.
Paper: AHPA Table 7, row "REPA (DINOv2-B)": gsnr_high_noise 13.9, gsnr_low_noise 4.2, gsnr_avg 8.5.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/repa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._repa)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 4
