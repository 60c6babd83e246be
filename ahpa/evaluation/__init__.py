"""Metrics, the networks whose features they compare, and the record of how a figure came about."""
