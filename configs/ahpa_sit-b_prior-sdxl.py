"""AHPA with SDXL's encoder as the prior only; the latents stay SD's.

Levels are grouped by resolution, as in the paper's Appendix B. The row below is of a vanilla model
with a router and a head that were trained on SD's encoder; this config trains with SDXL's.

Command: python tools/train.py configs/ahpa_sit-b_prior-sdxl.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.10, row "AHPA, SDXL-VAE" (zero-shot): gsnr_avg 10.4.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "resolution"
_base_.model.priors.vae.autoencoder = dict(type="KLAutoencoder", source="stabilityai/sdxl-vae")
