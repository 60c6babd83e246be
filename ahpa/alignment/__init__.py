"""Alignments: losses of tapped blocks, with their projectors, schedules and collapse terms."""

from . import attention, plateau, projectors, regularisation, routed, schedules, views

__all__ = [
    "attention",
    "plateau",
    "projectors",
    "regularisation",
    "routed",
    "schedules",
    "views",
]
