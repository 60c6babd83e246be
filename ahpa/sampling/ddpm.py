"""Samplers of a discrete path: DDPM's ancestral chain with a learned variance, and DDIM.

Both visit `steps` of the path's steps, evenly spaced (arXiv:2102.09672, section 4), with the betas
of that shorter chain. The estimate of x0 is never clipped, as latents have no bounds."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..registry import SAMPLERS, ConfigError
from ..registry.contracts import Path, Prediction, Sampler, Streams


class Chain(Protocol):
    """What the samplers need of the noise schedule of a chain; the flow room's Schedule has it."""

    def over(
        self,
        name: str,
        index: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Look up a table at a step, broadcasting over x."""

    def data(
        self,
        x: Tensor,
        eps: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return x0, given x and the noise."""

    def posterior_mean(
        self,
        x0: Tensor,
        x: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return the mean of q(x_{i-1} | x_i, x0)."""

    def log_variance(self, v: Tensor, index: Tensor) -> Tensor:
        """Return the learned log variance."""


@runtime_checkable
class SteppedPath(Protocol):
    """What the samplers need of a path with discrete steps; DiscretePath has it."""

    steps: int

    def time(self, index: Tensor) -> Tensor:
        """Return the time of a step."""

    def respaced(self, steps: int) -> tuple[Tensor, Chain]:
        """Return the steps that a shorter chain visits, ascending, and its schedule."""


def visited(
    name: str, path: Path, steps: int, x: Streams
) -> tuple[Chain, list[tuple[Tensor, Tensor]]]:
    """Return the schedule of the shorter chain, and its steps from the last to the first.

    Args:
        name: Name of the sampler, for messages.
        path: The flow's path.
        steps: Number of steps to visit.
        x: The streams, for their device.

    Returns:
        The schedule, and for each step its number in the shorter chain (0-d int64) and its time
        (0-d float32).

    Raises:
        ConfigError: If the path is not discrete or has fewer steps.
    """
    if not isinstance(path, SteppedPath):
        raise ConfigError(f"{name}: needs a DiscretePath, got {type(path).__name__}.")
    if not 1 <= steps <= path.steps:
        raise ConfigError(
            f"{name}: needs between 1 and {path.steps} steps (the path's), got {steps}."
        )
    kept, chain = path.respaced(steps)
    device = next(iter(x.values())).device
    times = path.time(kept).to(device)
    order = torch.arange(steps, device=device)
    return chain, [(order[i], times[i]) for i in reversed(range(steps))]


def split(
    pred: Tensor,
    x: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Split a prediction into the noise and v, the variance's share.

    Args:
        pred: [B, C, ...], or [B, 2C, ...] from a model that learns a variance.
        x: [B, C, ...].

    Returns:
        (eps, v), both [B, C, ...]; v is None if there is no learned variance.

    Raises:
        ValueError: If the prediction has another number of channels.
    """
    channels = x.shape[1]
    if pred.shape[1] == channels:
        return pred, None
    if pred.shape[1] == 2 * channels:
        return pred[:, :channels], pred[:, channels:]
    raise ValueError(
        f"the prediction has {pred.shape[1]} channels; {channels} or {2 * channels} are expected."
    )


@SAMPLERS.register_module(name="ddpm")
class AncestralSampler(Sampler):
    """DDPM's ancestral chain (arXiv:2006.11239, algorithm 2): `steps` model calls.

    x_{i-1} ~ N(posterior mean, variance); the last step takes the mean. The variance is the learned
    one (arXiv:2102.09672, eq. 15), or beta_tilde for a model without one.
    """

    needs = "noise"

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Run the chain. Raises ConfigError unless the path is discrete with at least `steps`."""
        chain, order = visited("ddpm", path, steps, x)
        for i, t in order:
            pred = model(x, t)
            kick = noise(x) if i > 0 else None
            following = {}
            for name, state in x.items():
                eps, v = split(pred[name], state)
                mean = chain.posterior_mean(chain.data(state, eps, i), state, i)
                if kick is None:
                    following[name] = mean
                    continue
                if v is None:
                    log_variance = chain.over("log_small", i, state)
                else:
                    log_variance = chain.log_variance(v, i)
                following[name] = mean + (0.5 * log_variance).exp() * kick[name]
            x = following
        return x


@SAMPLERS.register_module(name="ddim")
class DDIMSampler(Sampler):
    """DDIM without noise, eta = 0 (arXiv:2010.02502, eq. 12): `steps` model calls.

    x_{i-1} = sqrt(abar_{i-1}) x0 + sqrt(1 - abar_{i-1}) eps. A learned variance is not used.
    """

    needs = "noise"

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Run the chain. Raises ConfigError unless the path is discrete with at least `steps`."""
        chain, order = visited("ddim", path, steps, x)
        for i, t in order:
            pred = model(x, t)
            following = {}
            for name, state in x.items():
                eps, _ = split(pred[name], state)
                before = chain.over("before", i, state)
                x0 = chain.data(state, eps, i)
                following[name] = before.sqrt() * x0 + (1 - before).sqrt() * eps
            x = following
        return x
