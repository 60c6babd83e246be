"""Priors made of priors: normalised or pooled features, and several priors as one."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import PRIORS, ConfigError, build
from ..registry.contracts import Backbone, Clean, Features, Geometry, Prior, TargetView
from ..registry.validation import boolean, choice, number, positive, positive_int


class Wrapper(Prior):
    """Base of priors that change another prior's maps. Vectors and attention logits stay unchanged.

    Args:
        geometry: The model's sizes, passed on to the inner prior.
        prior: The inner prior, or its config.
    """

    prior: Prior

    def __init__(self, *, geometry: Geometry, prior: Mapping[str, Any] | Prior) -> None:
        super().__init__(geometry=geometry)
        self.prior = build(PRIORS, prior, where="prior", geometry=geometry)
        self.levels = self.prior.levels
        self.taps = self.prior.taps

    @abstractmethod
    def change(self, name: str, x: Tensor) -> Tensor:
        """Change the map [B, C, h, w] of a level."""

    def load(self) -> None:
        """Read the inner prior's weights."""
        self.prior.load()

    def tokenizer_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """List the tokenizer levels that the inner prior needs."""
        return self.prior.tokenizer_levels(levels)

    def probe(self, backbone: Backbone) -> Callable[[], Any] | None:
        """Return the inner prior's probe."""
        return self.prior.probe(backbone)

    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return the named levels of the inner prior, maps changed."""
        return self._changed(self.prior(view, levels), levels)

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return the named levels of the inner prior, maps changed, from the clean batch alone."""
        return self._changed(self.prior.from_clean(clean, levels), levels)

    @torch.no_grad()
    def _changed(self, features: Features, levels: Sequence[str]) -> Features:
        found = {}
        for name in self.levels:
            if name in levels:
                x = features[name]
                found[name] = self.change(name, x) if self.levels[name].is_map else x
        return found


@PRIORS.register_module()
class SpatialNorm(Wrapper):
    """iREPA's spatial normalisation: (y - gamma mean(y)) / (std(y) + eps) for each channel.

    Mean and standard deviation are over the places of a map; the result is float32.

    Args:
        geometry: The model's sizes.
        prior: The inner prior, or its config.
        gamma: Share of the mean that is subtracted; 0.6 in iREPA's code, 0.6 to 0.8 in its paper.
        eps: Added to the standard deviation.
        unbiased: Whether the standard deviation divides by N - 1, torch's default (inferred).
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        prior: Mapping[str, Any] | Prior,
        gamma: float = 0.6,
        eps: float = 1e-6,
        unbiased: bool = True,
    ) -> None:
        super().__init__(geometry=geometry, prior=prior)
        self.gamma = number("gamma", gamma, least=0)
        self.eps = positive("eps", eps)
        self.unbiased = boolean("unbiased", unbiased)

    def change(self, name: str, x: Tensor) -> Tensor:
        """Normalise a map [B, C, h, w] over its places."""
        x = x.float()
        mean = x.mean((2, 3), keepdim=True)
        std = x.std((2, 3), keepdim=True, unbiased=self.unbiased)
        return (x - self.gamma * mean) / (std + self.eps)


@PRIORS.register_module()
class ChannelNorm(Wrapper):
    """A LayerNorm without parameters over the channels of each place, in float32.

    Args:
        geometry: The model's sizes.
        prior: The inner prior, or its config.
        eps: Added to the variance.
    """

    def __init__(
        self, *, geometry: Geometry, prior: Mapping[str, Any] | Prior, eps: float = 1e-6
    ) -> None:
        super().__init__(geometry=geometry, prior=prior)
        self.eps = positive("eps", eps)

    def change(self, name: str, x: Tensor) -> Tensor:
        """Normalise a map [B, C, h, w] over its channels."""
        x = x.float()
        var = x.var(1, keepdim=True, unbiased=False)
        return (x - x.mean(1, keepdim=True)) * (var + self.eps).rsqrt()


@PRIORS.register_module()
class Pooled(Wrapper):
    """Average maps that are finer than `stride` pixels a feature down to it (ours).

    What follows then needs memory for a few tokens and not for every pixel. It is meant for levels
    far finer than the token grid, where bilinear resizing would skip pixels.

    Args:
        geometry: The model's sizes.
        prior: The inner prior, or its config.
        stride: Pixels per feature; 16 is the token grid for patches of 2 latents of 8 pixels.

    Raises:
        ConfigError: If the stride of a finer level does not divide `stride`.
    """

    def __init__(
        self, *, geometry: Geometry, prior: Mapping[str, Any] | Prior, stride: int = 16
    ) -> None:
        super().__init__(geometry=geometry, prior=prior)
        self.stride = positive_int("stride", stride)
        self.factors: dict[str, int] = {}
        levels = dict(self.prior.levels)
        for name, level in levels.items():
            if not level.is_map or level.stride >= stride:
                continue
            if stride % level.stride:
                raise ConfigError(
                    f"stride: must be a multiple of the {level.stride} pixels of level {name!r}, "
                    f"got {stride}."
                )
            self.factors[name] = stride // level.stride
            levels[name] = level._replace(stride=stride)
        self.levels = levels

    def change(self, name: str, x: Tensor) -> Tensor:
        """Average a finer map over squares; its dtype is kept."""
        return F.avg_pool2d(x, self.factors[name]) if name in self.factors else x


@PRIORS.register_module()
class CombinedPrior(Prior):
    """Several priors as one, so that one router can weigh or concatenate levels of all of them.

    Level `name` of prior `key` is called "key.name", in the order of `priors`. Only priors of
    which a level is wanted are computed.

    Args:
        geometry: The model's sizes, passed on to the inner priors.
        priors: {key: prior or its config}, at least one.
    """

    def __init__(
        self, *, geometry: Geometry, priors: Mapping[str, Mapping[str, Any] | Prior]
    ) -> None:
        super().__init__(geometry=geometry)
        if not isinstance(priors, Mapping) or not priors:
            raise ConfigError(f"priors: must be {{name: prior}} with at least one, got {priors!r}.")
        parts = {
            key: build(PRIORS, cfg, where=f"priors.{key}", geometry=geometry)
            for key, cfg in priors.items()
        }
        self.parts: Any = nn.ModuleDict(parts)
        self.levels = {
            f"{key}.{name}": level
            for key, part in parts.items()
            for name, level in part.levels.items()
        }
        self.taps = frozenset().union(*(part.taps for part in parts.values()))

    def load(self) -> None:
        """Read the weights of every part."""
        for part in self.parts.values():
            part.load()

    def tokenizer_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """List the tokenizer levels that the parts need, each once."""
        needed = [
            level
            for key, part in self.parts.items()
            for level in part.tokenizer_levels(self._of_part(key, levels))
        ]
        return tuple(dict.fromkeys(needed))

    def probe(self, backbone: Backbone) -> Callable[[], Any] | None:
        """Return a call of the probes of all parts that have one; None if no part has."""
        probes = [part.probe(backbone) for part in self.parts.values()]
        calls = [call for call in probes if call is not None]
        return (lambda: [call() for call in calls]) if calls else None

    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return the named levels of the parts."""
        return self._gather(levels, lambda part, names: part(view, names))

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return the named levels of the parts from the clean batch alone."""
        return self._gather(levels, lambda part, names: part.from_clean(clean, names))

    def _of_part(self, key: str, levels: Sequence[str]) -> tuple[str, ...]:
        """List the levels of a part that are wanted, by the part's own names."""
        for level in levels:
            choice("CombinedPrior: level", level, tuple(self.levels))
        return tuple(name for name in self.parts[key].levels if f"{key}.{name}" in levels)

    def _gather(
        self, levels: Sequence[str], run: Callable[[Prior, tuple[str, ...]], Features]
    ) -> Features:
        found: Features = {}
        for key, part in self.parts.items():
            names = self._of_part(key, levels)
            if names:
                features = run(part, names)
                found |= {f"{key}.{name}": features[name] for name in names}
        return found
