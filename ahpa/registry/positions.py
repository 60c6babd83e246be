"""Sinusoidal positions in one dimension, for image tokens and for the words of a prompt."""

import torch
from torch import Tensor

MAX_PERIOD = 10_000


def sincos_1d(dim: int, position: Tensor) -> Tensor:
    """Return fixed sin-cos positions (Vaswani et al. 2017).

    Args:
        dim: Number of channels, even.
        position: Positions [N].

    Returns:
        [N, dim] float64: dim/2 sines, then dim/2 cosines, of frequencies 10000^(-2i/dim).
    """
    rate = MAX_PERIOD ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = position.to(torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)
