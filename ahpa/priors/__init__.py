"""Floor 1: where targets come from, and the autoencoders that make latents."""

from . import autoencoder, clip_tower, internal, transforms, vae_taps, vision  # noqa: F401
