"""The diffusion transformers: SiT, DiT and MMDiT, each also with a class stream or decoupled."""

from . import base, class_stream, ddt, lanes, layers, mmdit, sit, token_routing

__all__ = ["base", "class_stream", "ddt", "lanes", "layers", "mmdit", "sit", "token_routing"]
