"""Losses: of the flow's prediction, between projected tokens and targets, and of tokens alone."""

from . import adversarial, attention, contrastive, dispersive, flow, hybrid, pairwise

__all__ = ["adversarial", "attention", "contrastive", "dispersive", "flow", "hybrid", "pairwise"]
