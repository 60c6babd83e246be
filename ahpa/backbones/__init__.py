"""Floor 1: the diffusion transformers and what conditions them."""

from . import class_stream, conditioning, sit  # noqa: F401
