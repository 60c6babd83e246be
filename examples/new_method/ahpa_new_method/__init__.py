"""A new method for ahpa. Importing this package registers its components (the entry point)."""

from . import (  # noqa: F401
    alignment,
    backbone,
    conditioner,
    data,
    flow,
    hook,
    losses,
    path,
    prior,
    projector,
    router,
    sampler,
    schedule,
)
