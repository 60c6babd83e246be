"""What the backbone is conditioned on: class labels, or text from a frozen encoder."""

from . import clip, labels, text, words

__all__ = ["clip", "labels", "text", "words"]
