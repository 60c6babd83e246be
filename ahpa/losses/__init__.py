"""Floor 1: flow and pairwise losses, projectors, schedules and the alignment that joins them."""

from . import adversarial, alignment, flow, hybrid, pairwise, projectors, schedules, views  # noqa: F401
