"""Classifier-free guidance in an interval of t (arXiv:2207.12598, arXiv:2404.07724)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import GUIDANCES, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Guidance, Prediction, Streams

Predict = Callable[[Streams, Tensor, Any], Streams]
"""A conditioned model: (x, t [B], condition of B samples) -> prediction."""


def checked_interval(interval: Sequence[float]) -> tuple[float, float]:
    """Return the bounds rounded to float32, as times are, so that both bounds are included.

    Raises:
        ConfigError: Unless they are two numbers with 0 <= low <= high <= 1.
    """
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise ConfigError(f"cfg_interval: must be two numbers (low, high), got {interval!r}.")
    low = valid.probability("cfg_interval", interval[0])
    high = valid.probability("cfg_interval", interval[1])
    if low > high:
        raise ConfigError(f"cfg_interval: must satisfy low <= high, got {tuple(interval)}.")
    low, high = torch.tensor([low, high], dtype=torch.float32, device="cpu").tolist()
    return low, high


def joined(cond: Any, null: Any) -> Any:
    """Concatenate two conditions along the batch: tensors, or (named) tuples of them and Nones."""
    if cond is None:
        return None
    if isinstance(cond, tuple):
        parts = [joined(a, b) for a, b in zip(cond, null, strict=True)]
        return tuple(parts) if type(cond) is tuple else type(cond)(*parts)
    return torch.cat([cond, null])


@GUIDANCES.register_module(name="classifier-free")
class ClassifierFreeGuidance(Guidance):
    """v_null + scale (v_cond - v_null) for t in an interval, and v_cond elsewhere.

    The interval follows Kynkaanniemi et al. (arXiv:2404.07724): every model call is guided or not
    by its own t. REPA's Heun sampler decides for both calls of a step by the t at which it begins.
    Messages call the options by the names that commands and configs have for them: cfg_scale,
    cfg_interval, cfg_channels and cls_cfg_scale.

    Args:
        scale: Guidance scale, at least 0; 1 is no guidance.
        interval: (low, high) in [0, 1]; both bounds are included.
        channels: How many of the image's channels are guided, from the first (DiT's code guides 3
            of 4); None for all of them. The other channels, and what a model predicts beyond the
            channels of x (a variance), are the conditional prediction's.
        cls_scale: Scale of the streams beside the image, REG's cls_cfg_scale; None for `scale`. As
            in REG's code, 0 leaves them conditional (as 1 does), the interval is the image's, and
            nothing is guided if `scale` is 1.

    Raises:
        ConfigError: If an option is out of its range, or if `cls_scale` would have no effect.
    """

    def __init__(
        self,
        *,
        scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0),
        channels: int | None = None,
        cls_scale: float | None = None,
    ) -> None:
        self.scale = valid.weight("cfg_scale", scale)
        self.cls_scale = None if cls_scale is None else valid.weight("cls_cfg_scale", cls_scale)
        if self.scale == 1 and self.cls_scale not in (None, 0, 1):
            raise ConfigError(
                f"cls_cfg_scale: {cls_scale} has no effect with cfg_scale=1, which is no guidance."
            )
        self.low, self.high = checked_interval(interval)
        self.channels = None if channels is None else valid.positive_int("cfg_channels", channels)

    def guide(
        self,
        predict: Predict,
        cond: Any,
        null: Any,
    ) -> Prediction:
        """Return the guided model (x, 0-d time) -> prediction.

        Inside the interval, both branches are computed in one call of 2B samples, the conditional
        half first. With scale 1 or outside the interval, only the conditional branch is computed.

        Args:
            predict: (x, t [B], condition) -> prediction.
            cond: The condition of B samples.
            null: The null condition of B samples.

        Raises:
            ConfigError: When called, if `channels` exceeds the channels of the image, or if there
                is a `cls_scale` and no stream beside the image.
        """

        def guided(x: Streams, t: Tensor) -> Streams:
            count = len(next(iter(x.values())))
            if self.cls_scale is not None and len(x) == 1:
                raise ConfigError(
                    "cls_cfg_scale: has no effect, as this model has no stream beside the image."
                )
            if self.scale == 1 or not self.low <= float(t.float()) <= self.high:
                return predict(x, t.expand(count), cond)
            twice = {name: torch.cat([part, part]) for name, part in x.items()}
            both = predict(twice, t.expand(2 * count), joined(cond, null))
            return {name: self.combine(name, pred, x[name]) for name, pred in both.items()}

        return guided

    def combine(
        self,
        name: str,
        both: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Combine the halves of one stream's prediction.

        Args:
            name: Name of the stream.
            both: The conditional half, then the unconditional one, [2B, C or more, ...].
            x: The stream's state [B, C, ...].
        """
        pred, null = both.chunk(2)
        scale = self.scale
        if name != "image" and self.cls_scale is not None:
            scale = self.cls_scale or 1.0
        own = x.shape[1]
        first = own if self.channels is None or name != "image" else self.channels
        if first > own:
            raise ConfigError(
                f"cfg_channels: {first} exceeds the latent's {own} channels; at most {own}."
            )
        if first == pred.shape[1]:
            return null + scale * (pred - null)
        part = pred[:, :first]
        rest = pred[:, first:]
        part = null[:, :first] + scale * (part - null[:, :first])
        return torch.cat([part, rest], dim=1)
