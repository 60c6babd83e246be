"""Floor 1: the diffusion transformers and what conditions them."""

from . import conditioning, sit  # noqa: F401
