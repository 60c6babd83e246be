"""Floor 1: interpolants, timestep distributions, samplers and guidance: the one place that knows that t = 1 is noise."""

from . import flow, guidance, paths, samplers  # noqa: F401
