"""Encodings of the time t for the learned routers (AHPA Table D.17): t [B] in [0, 1] -> e(t) [B, dim], float32."""

import math

import torch
from torch import Tensor, nn

from ..registry import TIME_ENCODINGS
from .base import check_count


def _half(dim: int) -> int:
    if check_count("dim", dim, 2) % 2:
        raise ValueError(f"dim must be even (half sines, half cosines), got {dim}.")
    return dim // 2


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}.")
    return float(value)


@TIME_ENCODINGS.register_module()
class LinearEncoding(nn.Module):
    """A learned line, e(t) = W t + b with W [dim, 1] (AHPA section 5.1 and its default; torch's default start)."""

    def __init__(self, *, dim: int = 128):
        super().__init__()
        self.dim = check_count("dim", dim)
        self.linear = nn.Linear(1, dim)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear(t[:, None])


@TIME_ENCODINGS.register_module()
class SinusoidalEncoding(nn.Module):
    """Sines, then cosines, at dim/2 frequencies from 1 to 1/max_period (DDPM's timestep embedding).

    DDPM counts steps 0 .. 1000, so t in [0, 1] is multiplied by `scale`; its frequencies are used as in its code,
    max_period ** (-i / (dim/2 - 1)).
    """

    def __init__(self, *, dim: int = 128, max_period: float = 10_000.0, scale: float = 1000.0):
        super().__init__()
        self.dim, self.half = dim, _half(dim)
        self.max_period, self.scale = _positive("max_period", max_period), _positive("scale", scale)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.half, device=t.device, dtype=torch.float32) / max(self.half - 1, 1)
        angle = self.scale * t[:, None] * torch.exp(-math.log(self.max_period) * steps)  # [B, dim/2]
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


@TIME_ENCODINGS.register_module()
class FourierEncoding(nn.Module):
    """Random Fourier features, [cos 2 pi B t, sin 2 pi B t] with fixed B ~ N(0, sigma^2) [dim/2] (AHPA Table D.17).

    The paper gives no sigma (1.0 here). B is drawn from a generator of its own with `seed`, and saved in checkpoints.
    """

    def __init__(self, *, dim: int = 128, sigma: float = 1.0, seed: int = 0):
        super().__init__()
        self.dim, half = dim, _half(dim)
        drawn = torch.randn(half, generator=torch.Generator().manual_seed(seed), device="cpu") * _positive(
            "sigma", sigma
        )
        self.register_buffer("frequencies", torch.empty(half).copy_(drawn))  # on the device of the construction

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t[:, None] * self.frequencies  # [B, dim/2]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
