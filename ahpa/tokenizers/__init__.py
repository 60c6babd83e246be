"""Latent tokenizers: frozen autoencoders between images and latents."""

from . import autoencoder_kl  # noqa: F401
