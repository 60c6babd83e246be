"""Encodings of the time t for the learned routers (AHPA, Table D.17)."""

import math

import torch
from torch import Tensor, nn

from ..registry import TIME_ENCODINGS, ConfigError
from ..registry.contracts import TimeEncoding
from ..registry.validation import integer, positive, positive_int


def _even(dim: int) -> int:
    if integer("dim", dim, least=2) % 2:
        raise ConfigError(f"dim: must be even (half sines, half cosines), got {dim}.")
    return dim


@TIME_ENCODINGS.register_module()
class LinearEncoding(TimeEncoding):
    """A learned line e(t) = W t + b with W [dim, 1] (AHPA, section 5.1, the paper's default).

    Args:
        dim: Width of the encoding.
    """

    def __init__(self, *, dim: int = 128) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.linear = nn.Linear(1, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Encode times [B] to [B, dim]."""
        return self.linear(t[:, None])


@TIME_ENCODINGS.register_module()
class SinusoidalEncoding(TimeEncoding):
    """Sines, then cosines, at dim/2 frequencies from 1 to 1/max_period (DDPM's time embedding).

    The frequencies are those of DDPM's code, max_period ** (-i / (dim/2 - 1)). DDPM counts steps
    0 .. 1000, so t in [0, 1] is multiplied by `scale`.

    Args:
        dim: Width of the encoding, even.
        max_period: The longest period, in units of 1 / (2 pi) steps.
        scale: Number of steps that t = 1 stands for.
    """

    def __init__(
        self, *, dim: int = 128, max_period: float = 10_000.0, scale: float = 1000.0
    ) -> None:
        super().__init__()
        self.dim = _even(dim)
        self.max_period = positive("max_period", max_period)
        self.scale = positive("scale", scale)

    def forward(self, t: Tensor) -> Tensor:
        """Encode times [B] to [B, dim]."""
        count = self.dim // 2
        steps = torch.arange(count, device=t.device, dtype=torch.float32) / max(count - 1, 1)
        frequencies = torch.exp(-math.log(self.max_period) * steps)
        angle = self.scale * t[:, None] * frequencies  # [B, dim/2]
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


@TIME_ENCODINGS.register_module()
class FourierEncoding(TimeEncoding):
    """Random Fourier features [cos 2 pi f t, sin 2 pi f t] (AHPA, Table D.17).

    The frequencies f ~ N(0, sigma^2) [dim/2] are fixed: drawn from a generator of their own, and
    saved in checkpoints. The paper gives no sigma.

    Args:
        dim: Width of the encoding, even.
        sigma: Standard deviation of the frequencies.
        seed: Seed of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, *, dim: int = 128, sigma: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.dim = _even(dim)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(dim // 2, generator=generator, device="cpu")
        drawn = drawn * positive("sigma", sigma)
        # Empty first, so that the buffer lies on the device of construction (such as meta).
        frequencies = torch.empty(dim // 2).copy_(drawn)
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor) -> Tensor:
        """Encode times [B] to [B, dim]."""
        angle = 2 * math.pi * t[:, None] * self.frequencies  # [B, dim/2]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
