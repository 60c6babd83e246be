"""AHPA with SDXL's autoencoder as tokenizer and prior.

Command: python tools/train.py configs/ahpa_sit-b_vae-sdxl.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.11, row "SDXL-VAE AHPA": FID 22.1, sFID 5.45.
"""

_base_ = ["ahpa_sit-b_groups-resolution.py"]
_base_.model.tokenizer = dict(type="KLAutoencoder", source="stabilityai/sdxl-vae")
