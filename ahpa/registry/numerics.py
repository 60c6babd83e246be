"""Small numerical helpers that several floors share: computing in full precision, and the entropy of weights."""

from contextlib import nullcontext

import torch
from torch import Tensor


def full_precision(device: torch.device):
    """A context in which autocast is off (a device without autocast, as `meta`, needs none)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def entropy(weights: Tensor) -> Tensor:
    """-sum p log p over the last dimension, in nats: [..., K] -> [...]; rows are normalised to sum 1, since sigmoid betas
    do not. The clamp keeps value and gradient finite at p = 0."""
    p = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
    return -(p * p.clamp_min(1e-12).log()).sum(-1)
