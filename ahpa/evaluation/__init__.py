"""Metrics, the networks whose features they compare, and the record of how a figure came about."""

from . import (  # noqa: F401
    clip_features,
    frechet,
    inception,
    inception_score,
    kernel,
    manifold,
    sliced,
    text_image,
    timm_features,
)
