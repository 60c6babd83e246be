"""AHPA with levels grouped by resolution (the paper's Appendix B).

Command: python tools/train.py configs/ahpa_sit-b_groups-resolution.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.10, row "AHPA, SD-VAE": gsnr_avg 11.6.
Paper: AHPA Table B.11, row "SD-VAE AHPA": FID 25.5, sFID 5.78.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "resolution"
