"""Floor 1: the diffusion transformers and what conditions them."""

from . import class_stream, conditioning, ddt, sit  # noqa: F401
