"""Samplers as plain functions: from noise at t = 1 to data at t = 0 along a velocity.

`velocity(x: Streams, t: 0-d Tensor) -> Streams`; `noise(x: Streams) -> Streams` draws standard normals of x's shapes;
`path` gives the score to the stochastic one. `steps` is the number of model calls (Heun: 2 steps - 1). States are
float32; t is computed in float64 and handed over as float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import SAMPLERS
from ..registry.contracts import Streams

Velocity = Callable[[Streams, Tensor], Streams]
LAST_SDE_TIME = 0.04  # where the stochastic sampler takes its one deterministic step to 0 (SiT, REPA)


def times(start: float, end: float, count: int, x: Streams) -> Tensor:
    """`count` equidistant times, float32 on the device of x."""
    if count < 2:
        raise ValueError(f"a sampler needs at least 1 step, got {count - 1}.")
    return torch.linspace(start, end, count, dtype=torch.float64).float().to(next(iter(x.values())).device)


def advance(x: Streams, v: Streams, dt: Tensor) -> Streams:
    return {name: x[name] + dt * v[name] for name in x}


@SAMPLERS.register_module(name="euler")
def euler(velocity: Velocity, x: Streams, *, steps: int, path=None, noise=None) -> Streams:
    """Euler's method on steps + 1 equidistant times (REPA's ODE sampler)."""
    grid = times(1.0, 0.0, steps + 1, x)
    for t, following in zip(grid[:-1], grid[1:], strict=True):
        x = advance(x, velocity(x, t), following - t)
    return x


@SAMPLERS.register_module(name="heun")
def heun(velocity: Velocity, x: Streams, *, steps: int, path=None, noise=None) -> Streams:
    """Heun's second-order method; the last step, into t = 0 where no model was trained, is Euler's (EDM, Alg. 1)."""
    grid = times(1.0, 0.0, steps + 1, x)
    for t, following in zip(grid[:-1], grid[1:], strict=True):
        v = velocity(x, t)
        ahead = advance(x, v, following - t)
        if following > 0:
            w = velocity(ahead, following)
            ahead = advance(x, {name: (v[name] + w[name]) / 2 for name in v}, following - t)
        x = ahead
    return x


@SAMPLERS.register_module(name="sde")
def euler_maruyama(velocity: Velocity, x: Streams, *, steps: int, path, noise) -> Streams:
    """Euler-Maruyama on the reverse SDE, dx = (v - w/2 s) dt + sqrt(w) dW with w_t = 2 sigma(t), s the score.

    linspace(1, 0.04, steps) and then 0; the last step takes the mean only (SiT's and REPA's SDE sampler with
    diffusion 'sigma'; for the linear path w_t = 2 t).
    """
    if steps < 2:
        raise ValueError(f"sde: needs at least 2 steps, got {steps}.")
    grid = torch.cat([times(1.0, LAST_SDE_TIME, steps, x), torch.zeros(1, device=next(iter(x.values())).device)])
    for t, following in zip(grid[:-1], grid[1:], strict=True):
        v, dt, diffusion = velocity(x, t), following - t, 2 * path.sigma(t)
        drift = {name: v[name] - 0.5 * diffusion * path.score(x[name], v[name], t) for name in x}
        x = advance(x, drift, dt)
        if following > 0:
            kick = (diffusion * dt.abs()).sqrt()
            x = {name: x[name] + kick * n for name, n in noise(x).items()}
    return x
