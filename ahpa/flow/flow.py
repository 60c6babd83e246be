"""The noising of a batch: the one place where t and the noise of a training step are drawn."""

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, TIMESTEPS, build
from ..registry.contracts import Noisy, Streams


@TIMESTEPS.register_module()
class UniformTimesteps:
    """t ~ U(0, 1), the default of SiT, REPA and AHPA."""

    def __call__(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        """-> t [count] float32 in [0, 1]."""
        return torch.rand(count, generator=generator, device=device)


@TIMESTEPS.register_module()
class LogitNormalTimesteps:
    """t = sigmoid(n), n ~ N(mean, std^2): more weight on the middle (REPA's lognormal option, SD3)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0):
        if std <= 0:
            raise ValueError(f"LogitNormalTimesteps: std must be above 0, got {std}.")
        self.mean, self.std = mean, std

    def __call__(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        normal = torch.randn(count, generator=generator, device=device)
        return torch.sigmoid(self.mean + self.std * normal)


@FLOWS.register_module()
class Flow:
    """A path and a distribution of t; `sample` draws both t and the noise, for all streams the same t."""

    def __init__(self, *, path=None, timesteps=None):
        self.path = build(PATHS, path or dict(type="LinearPath"), where="path")
        self.timesteps = build(TIMESTEPS, timesteps or dict(type="UniformTimesteps"), where="timesteps")

    def sample(self, data: Streams, generator: torch.Generator | None) -> Noisy:
        """data {stream: [B, ...]} -> the noised batch in float32; a function of the generator's state alone."""
        first = next(iter(data.values()))
        t = self.timesteps(len(first), generator, first.device)
        x, target, noise = {}, {}, {}
        for name, x0 in data.items():
            x0 = x0.float()
            noise[name] = torch.randn(x0.shape, generator=generator, device=x0.device)
            x[name], target[name] = self.path.mix(x0, noise[name], t)
        return Noisy(x=x, t=t, target=target, data=data, noise=noise)
