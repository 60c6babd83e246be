"""Floor 1: datasets and the sampler with a cursor."""

from . import coco, images, sampler, shapes  # noqa: F401
