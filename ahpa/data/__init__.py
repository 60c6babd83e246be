"""Floor 1: datasets and the sampler with a cursor."""

from . import shapes  # noqa: F401
