"""Samplers from noise to data, guidance, and the generator that joins them with trained parts."""

from . import ddpm, dopri5, generator, guidance, progress, samplers

__all__ = ["ddpm", "dopri5", "generator", "guidance", "progress", "samplers"]
