"""Distributions of a training step's time t, where t = 0 is data and t = 1 noise.

Uniform is the default of SiT, REPA and AHPA; the logit-normal is REPA's option and SD3's choice (arXiv:2403.03206).
"""

import math

import torch
from torch import Tensor

from ..registry import TIMESTEPS


@TIMESTEPS.register_module()
class UniformTimesteps:
    """t ~ U(0, 1), the default of SiT, REPA and AHPA."""

    def __call__(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        """-> t [count] float32 in [0, 1]."""
        return torch.rand(count, generator=generator, device=device, dtype=torch.float32)


@TIMESTEPS.register_module()
class LogitNormalTimesteps:
    """t = sigmoid(n), n ~ N(mean, std^2): more weight on the middle (REPA's lognormal option, SD3).

    A mean above 0 moves the weight towards noise. ValueError unless both are finite and std is above 0.
    """

    def __init__(self, *, mean: float = 0.0, std: float = 1.0):
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"LogitNormalTimesteps: std must be above 0 and finite, got {std}.")
        if not math.isfinite(mean):
            raise ValueError(f"LogitNormalTimesteps: mean must be finite, got {mean}.")
        self.mean, self.std = mean, std

    def __call__(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        """-> t [count] float32 in [0, 1]."""
        normal = torch.randn(count, generator=generator, device=device, dtype=torch.float32)
        return torch.sigmoid(self.mean + self.std * normal)
