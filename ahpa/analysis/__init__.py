"""Floor 3: what a run has learnt: the router's policy, the cost of a model."""

from . import policy  # noqa: F401
