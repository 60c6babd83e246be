"""AHPA with SDXL's encoder as the prior only; the latents stay SD's.

Command: python tools/train.py configs/ahpa_sit-b_prior-sdxl.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.10, row "AHPA, SDXL-VAE": gsnr_avg 10.4.
"""

_base_ = ["ahpa_sit-b_groups-resolution.py"]
_base_.model.priors.vae = dict(type="VAETaps", autoencoder=dict(type="KLAutoencoder", source="stabilityai/sdxl-vae"))
