"""Samplers along a velocity, from noise at t = 1 to data at t = 0, on a grid of times: two ODE
methods and the SDE of SiT and REPA. States are float32; times are computed in float64 and passed on
as float32."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import SAMPLERS
from ..registry import validation as valid
from ..registry.contracts import Path, Prediction, Sampler, Streams

LAST_SDE_TIME = 0.04
"""Where the stochastic sampler takes its one deterministic step to t = 0 (SiT, REPA)."""


def device_of(x: Streams) -> torch.device:
    """Return the device of the streams."""
    return next(iter(x.values())).device


def advance(
    x: Streams,
    v: Streams,
    dt: Tensor,
) -> Streams:
    """Return x + dt v for every stream."""
    return {name: x[name] + dt * v[name] for name in x}


class VelocitySampler(Sampler):
    """Base of the samplers that follow a velocity on a grid of times.

    Args:
        shift: s of the time shift t' = s t / (1 + (s - 1) t), above 0, which moves the grid towards
            noise for s > 1. Use the shift of the training times (RAE); 1 means none.
    """

    def __init__(
        self,
        *,
        shift: float = 1.0,
    ) -> None:
        self.shift = valid.positive("shift", shift)

    def times(
        self,
        start: float,
        end: float,
        count: int,
        x: Streams,
    ) -> Tensor:
        """Return `count` times, equidistant before the shift, float32 on the device of x."""
        t = torch.linspace(start, end, count, dtype=torch.float64)
        if self.shift != 1:
            t = self.shift * t / (1 + (self.shift - 1) * t)
        return t.float().to(device_of(x))


@SAMPLERS.register_module(name="euler")
class EulerSampler(VelocitySampler):
    """Euler's method on steps + 1 equidistant times, REPA's ODE sampler: `steps` model calls.

    Args:
        shift: Shift of the time grid; 1 means no shift.
    """

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate dx = v dt from t = 1 to 0. Raises ConfigError unless steps >= 1."""
        valid.integer("steps", steps, least=1)
        grid = self.times(1.0, 0.0, steps + 1, x)
        for t, following in zip(grid[:-1], grid[1:], strict=True):
            x = advance(x, model(x, t), following - t)
        return x


@SAMPLERS.register_module(name="heun")
class HeunSampler(VelocitySampler):
    """Heun's second-order method (EDM, arXiv:2206.00364, algorithm 1): 2 steps - 1 model calls.

    The last step, into t = 0 where no model is trained, is Euler's. Each of a step's two calls is
    guided by its own t; REPA's code decides for both by the t at which the step begins, so the two
    differ in the one step that crosses a bound of the guidance's interval.

    Args:
        shift: Shift of the time grid; 1 means no shift.
    """

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate dx = v dt from t = 1 to 0. Raises ConfigError unless steps >= 1."""
        valid.integer("steps", steps, least=1)
        grid = self.times(1.0, 0.0, steps + 1, x)
        for t, following in zip(grid[:-1], grid[1:], strict=True):
            v = model(x, t)
            ahead = advance(x, v, following - t)
            if following > 0:
                w = model(ahead, following)
                mean = {name: (v[name] + w[name]) / 2 for name in v}
                ahead = advance(x, mean, following - t)
            x = ahead
        return x


@SAMPLERS.register_module(name="sde")
class EulerMaruyamaSampler(VelocitySampler):
    """Euler-Maruyama on the reverse SDE of SiT and REPA: `steps` model calls.

    dx = (v - w/2 s) dt + sqrt(w) dW with the score s and w_t = 2 sigma(t), as in SiT's code. On the
    linear path that is 2 t; REPA's code has 2 t on the cosine path too, a w that is smaller by up
    to pi/2. The times are linspace(1, 0.04, steps) and then 0; the last step adds no noise.

    Args:
        shift: Shift of the time grid; 1 means no shift.
    """

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate the SDE from t = 1 to 0. Raises ConfigError unless steps >= 2."""
        valid.integer("steps", steps, least=2)
        end = torch.zeros(1, device=device_of(x))
        grid = torch.cat([self.times(1.0, LAST_SDE_TIME, steps, x), end])
        for t, following in zip(grid[:-1], grid[1:], strict=True):
            v = model(x, t)
            dt = following - t
            diffusion = 2 * path.sigma(t)
            drift = {}
            for name, state in x.items():
                drift[name] = v[name] - 0.5 * diffusion * path.score(state, v[name], t)
            x = advance(x, drift, dt)
            if following > 0:
                kick = (diffusion * dt.abs()).sqrt()
                x = {name: x[name] + kick * normal for name, normal in noise(x).items()}
        return x
