"""AHPA with SDXL's autoencoder as tokenizer and prior.

Levels are grouped by resolution, as in the paper's Appendix B.

Command: python tools/train.py configs/ahpa_sit-b_vae-sdxl.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.11, row "SDXL-VAE AHPA": FID 22.1, sFID 5.45.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "resolution"
_base_.model.tokenizer = dict(type="KLAutoencoder", source="stabilityai/sdxl-vae")
