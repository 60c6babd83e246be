"""Priors: where the targets of an alignment come from."""

from . import clip_tower, internal, transforms, vae_taps, vision  # noqa: F401
