"""Floor 1: flow and pairwise losses, projectors, schedules and the alignment that joins them."""

from . import alignment, flow, hybrid, pairwise, projectors, schedules  # noqa: F401
