"""Floor 1: where targets come from, and the autoencoders that make latents."""

from . import autoencoder, vae_taps  # noqa: F401
