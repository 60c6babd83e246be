"""Samplers of a discrete path: the ancestral chain of DDPM with a learned variance, and DDIM without noise.

Both visit `steps` of the path's steps, evenly spaced (arXiv:2102.09672, section 4), with the betas of that shorter chain.
`velocity(x: Streams, t: 0-d) -> Streams` is the model's prediction: the noise [B, C, ...], and where the model learns a
variance also its v, [B, 2C, ...]. x0 is never clipped: latents have no bounds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import SAMPLERS, ConfigError
from ..registry.contracts import Streams

Prediction = Callable[[Streams, Tensor], Streams]


def visited(name: str, path, steps: int, x: Streams):
    """-> (the schedule of the shorter chain; its steps from the last to the first as (i: 0-d long, t: 0-d float32))."""
    if getattr(path, "predicts", "velocity") != "noise":
        raise ConfigError(f"{name}: needs a DiscretePath, got {type(path).__name__}.")
    if not 1 <= steps <= path.steps:
        raise ConfigError(f"{name}: needs between 1 and {path.steps} steps (the path's), got {steps}.")
    kept, schedule = path.respaced(steps)
    device = next(iter(x.values())).device
    times, order = path.time(kept).to(device), torch.arange(steps, device=device)
    return schedule, [(order[i], times[i]) for i in reversed(range(steps))]


def split(pred: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A prediction [B, C or 2C, ...] for x [B, C, ...] -> (eps [B, C, ...], v alike or None)."""
    channels = x.shape[1]
    if pred.shape[1] not in (channels, 2 * channels):
        raise ValueError(f"the prediction has {pred.shape[1]} channels; {channels} or {2 * channels} are expected.")
    return pred[:, :channels], pred[:, channels:] if pred.shape[1] == 2 * channels else None


@SAMPLERS.register_module(name="ddpm")
def ddpm(velocity: Prediction, x: Streams, *, steps: int, path, noise) -> Streams:
    """Ancestral sampling, x_{i-1} ~ N(posterior mean, variance); the last step takes the mean (DDPM, Algorithm 2).

    The variance is the learned one (arXiv:2102.09672, eq. 15), or beta_tilde for a model that has none.
    """
    schedule, order = visited("ddpm", path, steps, x)
    for i, t in order:
        pred, following = velocity(x, t), {}
        kick = noise(x) if i > 0 else None
        for name, state in x.items():
            eps, v = split(pred[name], state)
            following[name] = schedule.posterior_mean(schedule.data(state, eps, i), state, i)
            if kick is not None:
                log_variance = schedule.over("log_small", i, state) if v is None else schedule.log_variance(v, i)
                following[name] = following[name] + (0.5 * log_variance).exp() * kick[name]
        x = following
    return x


@SAMPLERS.register_module(name="ddim")
def ddim(velocity: Prediction, x: Streams, *, steps: int, path, noise=None) -> Streams:
    """DDIM with eta 0: x_{i-1} = sqrt(abar_{i-1}) x0 + sqrt(1 - abar_{i-1}) eps (arXiv:2010.02502, eq. 12)."""
    schedule, order = visited("ddim", path, steps, x)
    for i, t in order:
        pred, following = velocity(x, t), {}
        for name, state in x.items():
            eps, _ = split(pred[name], state)
            before = schedule.over("before", i, state)
            following[name] = before.sqrt() * schedule.data(state, eps, i) + (1 - before).sqrt() * eps
        x = following
    return x
