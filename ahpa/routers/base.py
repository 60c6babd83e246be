"""What all routers share: resize the levels, weigh them in a group (AHPA eq. 3), scale and concatenate the groups (eq. 4).

A subclass says only how the weights come about: `weights` (B batch, L levels of a group, G groups, D content width, and
t = 1 is noise). A learned one inherits from `LearnedRouter` and gives `logits`.

Precision: weights are float32, under autocast too. Features keep the prior's dtype through the resizing and enter the
weighted sum as float32, so the target is float32. They carry no gradient; the router's comes through its weights.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import nearest
from ..registry.contracts import Features, LevelSpec, Router
from ..registry.numerics import entropy, full_precision
from .grouping import resolve_groups

RESIZES = ("bilinear", "adaptive")  # AHPA Appendix A says bilinear, its section 4.2 adaptive pooling
BETAS = ("softmax", "sigmoid")


def check_choice(name: str, value, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise ValueError(f"{name}={value!r} is unknown{nearest(value, valid)}")
    return value


def check_count(name: str, value, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return value


def entropies(intra: Mapping[str, Tensor], inter: Tensor) -> dict[str, Tensor]:
    """{'inter': H of the betas, 'intra_<group>': H of that group's alphas}, scalars in nats, differentiable.

    A router that has collapsed onto one level a group has all at 0; uniform weights give log of the count.
    """
    return {"inter": entropy(inter).mean()} | {
        f"intra_{group}": entropy(alpha).mean() for group, alpha in intra.items()
    }


def resize_to(x: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """[B, C, H, W] -> [B, C, h, w] by bilinear interpolation (no antialias) or averaging; as it is if of that size."""
    if tuple(x.shape[-2:]) == grid:
        return x
    if mode == "adaptive":
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False, antialias=False)


def weighted_sum(levels: list[Tensor], scale_BL: Tensor, width: int) -> Tensor:
    """AHPA eq. 3 over one group: levels [B, C_l, h, w] -> [B, width, h, w] in float32; levels of equal channels are summed
    before they are widened, and half-precision features are never copied as a whole."""
    sums: dict[int, Tensor] = {}
    for x, scale_B in zip(levels, scale_BL.unbind(1), strict=True):
        total, scale = sums.get(x.shape[1]), scale_B[:, None, None, None]
        sums[x.shape[1]] = x * scale if total is None else torch.addcmul(total, x, scale)
    first, *others = (widen(total, width) for total in sums.values())
    return sum(others, first)


def widen(x: Tensor, width: int) -> Tensor:
    """[B, C, h, w] -> [B, width, h, w]: zero channels behind the C given, times sqrt(width / C), so that the root mean
    square over all channels stays; as it is where C = width [ours: nothing is learned, a learned map would collapse]."""
    channels = x.shape[1]
    return x if channels == width else F.pad((width / channels) ** 0.5 * x, (0, 0, 0, 0, 0, width - channels))


class GroupedRouter(Router):
    """Base of all routers here: groups of levels, each a weighted sum, side by side in the target's channels.

    spec, grid (h, w) and content_dim D are derived by the caller. groups: see `resolve_groups`. prefix: vector levels
    [B, C] that become the target's first tokens, unweighted; their C must be `out_dim`. resize: 'bilinear' or
    'adaptive'. pad: whether levels of one group may differ in channels (see `widen`) [ours]. Attributes: `groups`
    {group: level names}, `channels` {group: C of its widest level}, `out_dim` = their sum, `used_levels` in the prior's
    order, prefix included.
    """

    def __init__(
        self,
        *,
        spec: Mapping[str, LevelSpec],
        grid: tuple[int, int],
        content_dim: int,
        groups="4/4",
        prefix=(),
        resize: str = "bilinear",
        pad: bool = False,
    ):
        super().__init__()
        self.groups = resolve_groups(groups, spec, mixed=pad)
        self.channels = {group: max(spec[name].channels for name in names) for group, names in self.groups.items()}
        self.out_dim = sum(self.channels.values())
        self.grid, self.content_dim = tuple(grid), content_dim
        self.resize = check_choice("resize", resize, RESIZES)
        self.prefix = self._check_prefix((prefix,) if isinstance(prefix, str) else tuple(prefix), spec)
        used = set(self.prefix).union(*self.groups.values())
        self.used_levels = tuple(name for name in spec if name in used)

    def _check_prefix(self, prefix, spec) -> tuple[str, ...]:
        for name in prefix:
            if name not in spec:
                raise ValueError(f"prefix: the prior has no level {name!r}{nearest(name, spec)}")
            channels, stride = spec[name]
            if stride:
                raise ValueError(f"prefix: level {name!r} is a map of features; only a vector [B, C] can be a token.")
            if channels != self.out_dim:
                raise ValueError(f"prefix: {name!r} has {channels} channels, the groups' target has {self.out_dim}.")
        return prefix

    def extra_repr(self) -> str:
        return ", ".join(f"{group}=[{', '.join(names)}]" for group, names in self.groups.items())

    def forward(self, features: Features, t: Tensor, content: Tensor | None = None) -> Tensor:
        """features {level: [B, C, H, W] or [B, C]}, t [B], content [B, N, D] -> float32 target [B, P+N, out_dim]."""
        return self.mix(features, *self.weights(t, content))

    def mix(self, features: Features, intra: Mapping[str, Tensor], inter: Tensor) -> Tensor:
        """The target [B, P+N, out_dim] for given weights, as `weights` returns them."""
        missing = [name for name in self.used_levels if name not in features]
        if missing:
            raise ValueError(f"the prior gave no level {missing[0]!r}{nearest(missing[0], features)}")
        with full_precision(inter.device):
            grouped = set().union(*self.groups.values())  # a level of several groups is resized once
            resized = {name: resize_to(features[name], self.grid, self.resize) for name in grouped}
            parts = []
            for column, (group, names) in enumerate(self.groups.items()):
                scale_BL = inter[:, column : column + 1] * intra[group]  # eq. 4's beta goes into eq. 3's alpha: linear
                parts.append(weighted_sum([resized[name] for name in names], scale_BL, self.channels[group]))
            target = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)  # AHPA eq. 4: [B, C, h, w] -> [B, N, C]
            if self.prefix:
                first = torch.stack([features[name].float() for name in self.prefix], dim=1)  # [B, P, C]
                target = torch.cat([first, target], dim=1)
        return target


class LearnedRouter(GroupedRouter):
    """Base of the learned routers: `logits` of all alphas and betas, softmax in each group.

    beta: 'softmax' over the groups, or 'sigmoid', each group by itself (the paper says "scaling factors" only).
    """

    def __init__(self, *, beta: str = "softmax", **options):
        super().__init__(**options)
        self.beta = check_choice("beta", beta, BETAS)
        self.sizes = [len(names) for names in self.groups.values()] + [len(self.groups)]
        self.outputs = sum(self.sizes)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """t [B] float32 -> [B, outputs]: each group's alphas in order, then the betas; autocast is off here."""
        raise TypeError(f"{type(self).__name__} must define logits(t, content)")

    def weights(self, t: Tensor, content: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        with full_precision(t.device):
            *alphas, beta = self.logits(t.float(), content).float().split(self.sizes, dim=-1)
            intra = {group: alpha.softmax(-1) for group, alpha in zip(self.groups, alphas, strict=True)}
            return intra, beta.softmax(-1) if self.beta == "softmax" else beta.sigmoid()
