"""The noising of a batch: the one place where t and the noise of a training step are drawn."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, TIMESTEPS, build
from ..registry.contracts import Noisy, Streams


class Noising:
    """Base of the flows: a path, and how often each image of a batch is noised. A flow draws its times in `times`."""

    def __init__(self, *, path, views: int):
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ValueError(f"views: must be a whole number of at least 1, got {views!r}.")
        self.path, self.views = path, views

    def times(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        """t [count] in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define times")

    def sample(self, data: Streams, generator: torch.Generator | None) -> Noisy:
        """data {stream: [B, ...]} -> the noised batch in float32, the same t for all streams; a function of the
        generator's state alone. With views, B counts them all: the whole batch once, then once more ..."""
        data = {name: torch.cat([x0.float()] * self.views) for name, x0 in data.items()}  # [views B, ...]
        first = next(iter(data.values()))
        t = self.times(len(first), generator, first.device)
        x, target, noise = {}, {}, {}
        for name, x0 in data.items():
            noise[name] = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            x[name], target[name] = self.path.mix(x0, noise[name], t)
        return Noisy(x=x, t=t, target=target, data=data, noise=noise, views=self.views)


@FLOWS.register_module()
class Flow(Noising):
    """A path and a distribution of t; `sample` draws both t and the noise, for all streams the same t.

    path: LinearPath if not given; timesteps: UniformTimesteps if not given. Each a config or a built object. views: how
    often each image of a batch is noised, with a t and a noise of its own each time (DUPA). `samplers`
    names those that fit what is predicted, the default first.
    """

    samplers = ("euler", "heun", "sde")

    def __init__(self, *, path: Mapping | Any = None, timesteps: Mapping | Any = None, views: int = 1):
        super().__init__(
            path=build(PATHS, dict(type="LinearPath") if path is None else path, where="path"), views=views
        )
        if getattr(self.path, "predicts", "velocity") != "velocity":
            raise ValueError(f"path: Flow needs a path with a velocity, {type(self.path).__name__} fits DiscreteFlow.")
        timesteps = dict(type="UniformTimesteps") if timesteps is None else timesteps
        self.timesteps = build(TIMESTEPS, timesteps, where="timesteps")

    def times(self, count, generator, device):
        return self.timesteps(count, generator, device)
