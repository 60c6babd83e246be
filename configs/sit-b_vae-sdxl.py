"""Vanilla SiT-B/2 on SDXL's latents, with AHPA's optimiser (lr 2e-4, clip 2.0).

Command: python tools/train.py configs/sit-b_vae-sdxl.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.11, row "SDXL-VAE Vanilla": FID 28.4, sFID 6.12.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/ahpa.py"]
_base_.model.tokenizer = dict(type="KLAutoencoder", source="stabilityai/sdxl-vae")
