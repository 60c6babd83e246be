"""Floor 1: routers weigh the levels of a prior into one target."""

from . import encodings, learned, partition, static
from .base import GroupedRouter, entropies
from .grouping import resolve_groups

__all__ = ["GroupedRouter", "encodings", "entropies", "learned", "partition", "resolve_groups", "static"]
