"""Floor 1: interpolants, distributions of t, samplers and guidance: the one place that knows that t = 1 is noise."""

from . import ddpm, discrete, flow, guidance, paths, samplers, timesteps  # noqa: F401
