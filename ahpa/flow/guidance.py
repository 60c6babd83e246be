"""Classifier-free guidance on the velocity, in an interval of t (Kynkaanniemi et al. 2024, as REPA applies it)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import GUIDANCES, ConfigError
from ..registry.contracts import Streams


def _bounds(interval) -> tuple[float, float]:
    """The interval as float32 numbers, as t is: a sampler's t = 0.85 is 0.8500000238, which is not above the bound."""
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise ConfigError(f"cfg_interval: must be two numbers (low, high), got {interval!r}.")
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"cfg_interval: must be 0 <= low <= high <= 1, got {tuple(interval)}.")
    low, high = torch.tensor([low, high], dtype=torch.float32, device="cpu").tolist()
    return low, high


def joined(cond, null):
    """Two conditions one after the other: tensors, or (named) tuples of conditions of which parts may be None."""
    if cond is None:
        return None
    if isinstance(cond, tuple):
        parts = [joined(a, b) for a, b in zip(cond, null, strict=True)]
        return type(cond)(*parts) if hasattr(cond, "_fields") else tuple(parts)
    return torch.cat([cond, null])


@GUIDANCES.register_module(name="classifier-free")
def guided(velocity_of: Callable, cond, null, scale: float, interval=(0.0, 1.0),
           channels: int | None = None) -> Callable:  # fmt: skip
    """v_u + scale (v_c - v_u) for interval[0] <= t <= interval[1], the conditional v_c elsewhere.

    velocity_of(x: Streams, t [B], cond) -> Streams; cond, null: of B samples each, see `joined`. Returns
    velocity(x, t: 0-d). Inside the interval both branches are one call of 2B; with scale 1, or outside, the null branch
    is not computed. `channels`: how many of the image's channels are guided, from the first (DiT's code guides 3 of 4),
    all by default; the others, and what a model predicts beyond the channels of x (a variance), are the conditional's.
    ConfigError for an interval that is not in [0, 1], for a scale that is negative or not finite, and for channels that x
    has not.
    """
    low, high = _bounds(interval)
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"cfg_scale: must be finite and at least 0 (1 is no guidance), got {scale}.")
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise ConfigError(f"cfg_channels: a whole number above 0, or None for all, is expected, got {channels!r}.")

    def mixed(name: str, v: Tensor, null_v: Tensor, own: int) -> Tensor:
        """own: the channels of x, which a prediction may exceed."""
        first = own if channels is None or name != "image" else channels
        if first > own:
            raise ConfigError(
                f"cfg_channels: {channels} of the latent's {own} channels cannot be guided; at most {own}."
            )
        if first == v.shape[1]:
            return null_v + scale * (v - null_v)
        part, rest = v[:, :first], v[:, first:]
        return torch.cat([null_v[:, :first] + scale * (part - null_v[:, :first]), rest], dim=1)

    def velocity(x: Streams, t: Tensor) -> Streams:
        count = len(next(iter(x.values())))
        if scale == 1 or not low <= float(t.float()) <= high:
            return velocity_of(x, t.expand(count), cond)
        twice = {name: torch.cat([part, part]) for name, part in x.items()}
        both = velocity_of(twice, t.expand(2 * count), joined(cond, null))
        halves = {name: v.chunk(2) for name, v in both.items()}
        return {name: mixed(name, v, null_v, x[name].shape[1]) for name, (v, null_v) in halves.items()}

    return velocity
