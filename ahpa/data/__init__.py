"""Datasets, the preparation of pictures, and the loader whose state is one number."""

from . import coco, images, sampler, shapes  # noqa: F401
