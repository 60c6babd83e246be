"""AHPA with the encoder that OpenAI's consistency decoder belongs to: Stable Diffusion's.

No public autoencoder is known that the paper's "Consistency VAE" could be (docs/method.md). As it
stands this is the model of `ahpa_sit-b_groups-resolution`, so the figures below are not to be
expected of it; give another AutoencoderKL by `model.tokenizer.source`.

Command: python tools/train.py configs/ahpa_sit-b_vae-consistency.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table B.10, row "AHPA, Consistency VAE" (zero-shot): gsnr_avg 10.1 (no public
    autoencoder reproduces it).
Paper: AHPA Table B.11, row "Consistency VAE AHPA": FID 21.7, sFID 5.48 (no public autoencoder
    reproduces it).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "resolution"
_base_.model.tokenizer = dict(
    type="KLAutoencoder", source="stabilityai/sd-vae-ft-ema", statistics="sd-imagenet"
)
