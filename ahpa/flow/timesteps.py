"""Distributions of the training time t, where t = 0 is data and t = 1 is noise."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import TIMESTEPS, build
from ..registry import validation as valid
from ..registry.contracts import Timesteps


@TIMESTEPS.register_module()
class UniformTimesteps(Timesteps):
    """t ~ U(0, 1), the default of SiT, REPA and AHPA."""

    def sample(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times [count], float32 in [0, 1)."""
        return torch.rand(count, generator=rng, device=device, dtype=torch.float32)


@TIMESTEPS.register_module()
class LogitNormalTimesteps(Timesteps):
    """t = sigmoid(n) with n ~ N(mean, std^2): SD3's choice (arXiv:2403.03206) and REPA's option.

    It is the same on every path. REPA's code keeps the distribution of sigma / alpha = exp(n)
    instead: t = 2/pi atan(exp(n)) on the cosine path, where ours is less spread (0.73 instead of
    0.78 for n = 1).

    Args:
        mean: Mean of n; above 0 it gives more weight to noisy times.
        std: Standard deviation of n, above 0.

    Raises:
        ConfigError: If `mean` is not finite or `std` is not a finite number above 0.
    """

    def __init__(
        self,
        *,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        self.mean = valid.number("mean", mean)
        self.std = valid.positive("std", std)

    def sample(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times [count], float32 in [0, 1]."""
        normal = torch.randn(count, generator=rng, device=device, dtype=torch.float32)
        return torch.sigmoid(self.mean + self.std * normal)


@TIMESTEPS.register_module()
class ShiftedTimesteps(Timesteps):
    """t' = s t / (1 + (s - 1) t) for t of another distribution: a shift towards noise for s > 1.

    SD3 uses it for higher resolutions (arXiv:2403.03206, eq. 23), RAE for latents of more
    dimensions, with s = sqrt(dimensions / 4096). The samplers "euler", "heun" and "sde" have a
    `shift` of their own for the times at which they call the model.

    Args:
        shift: s, above 0; 1 leaves the times unchanged.
        timesteps: The distribution of t, a config or an object; uniform by default.

    Raises:
        ConfigError: If `shift` is not a finite number above 0.
    """

    def __init__(
        self,
        *,
        shift: float,
        timesteps: Mapping[str, Any] | Timesteps | None = None,
    ) -> None:
        self.shift = valid.positive("shift", shift)
        if timesteps is None:
            timesteps = UniformTimesteps()
        self.timesteps: Timesteps = build(TIMESTEPS, timesteps, where="timesteps")

    def sample(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times [count], float32 in [0, 1]."""
        t = self.timesteps.sample(count, rng, device)
        return self.shift * t / (1 + (self.shift - 1) * t)
