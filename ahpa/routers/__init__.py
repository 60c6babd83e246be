"""Routers: how the levels of a prior are weighed into one target (AHPA, section 4)."""

from . import encodings, learned, partition, static
from .base import GroupedRouter, LearnedRouter, entropies
from .grouping import Groups, resolve_groups

__all__ = [
    "GroupedRouter",
    "Groups",
    "LearnedRouter",
    "encodings",
    "entropies",
    "learned",
    "partition",
    "resolve_groups",
    "static",
]
