"""Metrics, the networks whose features they compare, and the record of how a figure came about."""

from . import frechet, inception, timm_features  # noqa: F401
