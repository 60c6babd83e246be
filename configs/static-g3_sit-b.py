"""Static alignment of block 3 with the uniform mean of group G3.

Command: python tools/train.py configs/static-g3_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 2, row "Group 3 (mid)": IS 48.9, FID 32.6, sFID 6.45.
Paper: AHPA Table 7, row "Uniform (mid, G3)": gsnr_high_noise 4.1, gsnr_low_noise 9.2, gsnr_avg 7.0.
Paper: AHPA Table B.10, row "Uniform (mid, G3), SD-VAE" (zero-shot): gsnr_avg 7.0.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "G3"
