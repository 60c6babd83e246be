"""Wrappers: a prior whose features are normalised or pooled, and several priors as one. They pass all else through."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import PRIORS, ConfigError, build, nearest
from ..registry.contracts import Features, LevelSpec, Prior, Step


class Wrapped(Prior):
    """Base: another prior's levels, each changed by `change` if it is a map; vectors stay as they are."""

    def __init__(self, *, prior):
        super().__init__()
        self.prior = build(PRIORS, prior, where="prior")

    def change(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape; in float32."""
        raise TypeError(f"{type(self).__name__} must define change(x)")

    @property
    def shared_levels(self) -> tuple[str, ...]:
        return getattr(self.prior, "shared_levels", ())

    def bind(self, *, tokenizer, backbone) -> None:
        self.prior.bind(tokenizer=tokenizer, backbone=backbone)

    def load(self) -> None:
        """Reads the wrapped prior's weights, if it has any."""
        if hasattr(self.prior, "load"):
            self.prior.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        return self.prior.spec(backbone)

    def request(self, levels: Sequence[str]) -> None:
        self.prior.request(levels)

    def probe(self, backbone):
        return self.prior.probe(backbone)

    @torch.no_grad()
    def forward(self, step: Step) -> Features:
        """-> the wrapped prior's levels, maps changed and in float32."""
        return {name: self.change(x.float()) if x.ndim == 4 else x for name, x in self.prior(step).items()}


@PRIORS.register_module()
class SpatialNorm(Wrapped):
    """(y - gamma mean(y)) / (std(y) + eps), mean and std over the places of a map for each channel (iREPA).

    gamma: 0.6 in iREPA's code, 0.6 to 0.8 in its paper. unbiased: std with N - 1, torch's default [inferred].
    """

    def __init__(self, *, prior, gamma: float = 0.6, eps: float = 1e-6, unbiased: bool = True):
        super().__init__(prior=prior)
        if not eps > 0:
            raise ValueError(f"eps: must be above 0, got {eps!r}.")
        self.gamma, self.eps, self.unbiased = float(gamma), float(eps), unbiased

    def change(self, x):
        mean = x.mean((2, 3), keepdim=True)
        return (x - self.gamma * mean) / (x.std((2, 3), keepdim=True, unbiased=self.unbiased) + self.eps)


@PRIORS.register_module()
class ChannelNorm(Wrapped):
    """A LayerNorm without parameters over the channels of each place: mean 0, standard deviation 1."""

    def __init__(self, *, prior, eps: float = 1e-6):
        super().__init__(prior=prior)
        if not eps > 0:
            raise ValueError(f"eps: must be above 0, got {eps!r}.")
        self.eps = float(eps)

    def change(self, x):
        return (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True, unbiased=False) + self.eps).rsqrt()


@PRIORS.register_module()
class Pooled(Wrapped):
    """Maps finer than `stride` pixels a feature are averaged down to it, so that what follows needs memory for a few
    tokens and not for every pixel [ours; for levels far above the token grid, where bilinear resizing skips pixels].

    stride: 16 is the token grid of a patch of 2 latents of 8 pixels. ValueError for a level whose own does not divide it.
    """

    def __init__(self, *, prior, stride: int = 16):
        super().__init__(prior=prior)
        if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
            raise ValueError(f"stride: must be a whole number of at least 1, got {stride!r}.")
        self.stride, self.factors = stride, {}

    def spec(self, backbone) -> dict[str, LevelSpec]:
        levels = self.prior.spec(backbone)
        finer = {name: level.stride for name, level in levels.items() if 0 < level.stride < self.stride}
        for name, own in finer.items():
            if self.stride % own:
                raise ValueError(f"Pooled.stride: {self.stride} is no multiple of the {own} pixels of level {name!r}.")
        self.factors = {name: self.stride // own for name, own in finer.items()}
        return {name: level._replace(stride=self.stride) if name in finer else level for name, level in levels.items()}

    @torch.no_grad()
    def forward(self, step: Step) -> Features:
        """-> the wrapped prior's levels in their dtype, each finer map averaged over squares of pixels."""
        found, factors = self.prior(step), self.factors
        return {name: F.avg_pool2d(x, factors[name]) if name in factors else x for name, x in found.items()}


@PRIORS.register_module()
class CombinedPrior(Prior):
    """Several priors as one: level `name` of prior `key` is called 'key.name', in the order of `priors`.

    priors: {key: prior}. A router's groups then weigh or concatenate levels of different encoders.
    """

    def __init__(self, *, priors: Mapping):
        super().__init__()
        if not isinstance(priors, Mapping) or not priors:
            raise ConfigError(f"priors: expected {{name: prior}} with at least one, got {priors!r}.")
        self.parts = nn.ModuleDict({key: build(PRIORS, cfg, where=f"priors.{key}") for key, cfg in priors.items()})
        self.names: dict[str, tuple[str, ...]] = {}

    @property
    def shared_levels(self) -> tuple[str, ...]:
        shared = [level for part in self.parts.values() for level in getattr(part, "shared_levels", ())]
        return tuple(dict.fromkeys(shared))

    def bind(self, *, tokenizer, backbone) -> None:
        for part in self.parts.values():
            part.bind(tokenizer=tokenizer, backbone=backbone)

    def load(self) -> None:
        """Reads the weights of each part that has any."""
        for part in self.parts.values():
            if hasattr(part, "load"):
                part.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        return {
            f"{key}.{name}": level for key, part in self.parts.items() for name, level in part.spec(backbone).items()
        }

    def request(self, levels: Sequence[str]) -> None:
        """ConfigError for a level without a part's name before it."""
        self.names = {
            key: tuple(n.removeprefix(f"{key}.") for n in levels if n.startswith(f"{key}.")) for key in self.parts
        }
        for level in levels:
            if level.split(".")[0] not in self.parts:
                raise ConfigError(
                    f"CombinedPrior: there is no level {level!r}{nearest(level.split('.')[0], self.parts)}"
                )
        for key, part in self.parts.items():
            part.request(self.names[key])

    def probe(self, backbone):
        calls = [call for part in self.parts.values() if (call := part.probe(backbone)) is not None]
        return (lambda: [call() for call in calls]) if calls else None

    def forward(self, step: Step) -> Features:
        """-> the requested levels of those parts that have any."""
        found = {}
        for key, part in self.parts.items():
            if self.names.get(key, ("all",)):
                found |= {f"{key}.{name}": x for name, x in part(step).items()}
        return found
