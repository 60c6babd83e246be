"""Vanilla SiT-B/2 on the "Consistency VAE", with AHPA's optimiser (lr 2e-4, clip 2.0).

No public autoencoder is known that it could be. As it stands, with Stable Diffusion's encoder, this
is the model of `sit-b_matched`, so the figure below is not to be expected of it; give another
AutoencoderKL by `model.tokenizer.source`.

Command: python tools/train.py configs/sit-b_vae-consistency.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.11, row "Consistency VAE Vanilla": FID 24.5, sFID 5.9 (no public autoencoder
    reproduces it).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/recipes/ahpa.py"]
_base_.model.tokenizer = dict(
    type="KLAutoencoder", source="stabilityai/sd-vae-ft-ema", statistics="sd-imagenet"
)
