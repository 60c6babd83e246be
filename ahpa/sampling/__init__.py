"""Samplers from noise to data, guidance, and the generator that joins them with trained parts."""

from . import ddpm, generator, guidance, progress, samplers

__all__ = ["ddpm", "generator", "guidance", "progress", "samplers"]
