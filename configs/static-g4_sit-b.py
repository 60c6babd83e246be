"""Static alignment of block 3 with the uniform mean of group G4.

Command: python tools/train.py configs/static-g4_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 1, row "block 3": FID 30.7, IS 48.7.
Paper: AHPA Table 2, row "Group 4 (deep)": IS 48.7, FID 30.7, sFID 6.26.
Paper: AHPA Table 7, row "Uniform (deep, G4)": gsnr_high_noise 12.3, gsnr_low_noise 4.1, gsnr_avg
    7.3.
Paper: AHPA Table B.10, row "Uniform (deep, G4), SD-VAE" (zero-shot): gsnr_avg 7.3.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "G4"
