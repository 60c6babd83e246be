"""Floor 1: the diffusion transformers and what conditions them: class labels, or text by a frozen encoder."""

from . import base, class_stream, clip, conditioning, ddt, mmdit, sit, text, words  # noqa: F401
