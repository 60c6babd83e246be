"""Bases of all routers: levels are weighed within groups (AHPA, eq. 3), and the groups are scaled
and concatenated (eq. 4). A subclass says only how the weights come about."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..registry import ConfigError, nearest
from ..registry.contracts import Features, Geometry, LevelSpec, Router
from ..registry.numerics import entropy
from ..registry.precision import full_precision
from ..registry.validation import choice
from .grouping import Groups, resolve_groups
from .mixing import RESIZES, resize_to, weighted_sum

BETAS = ("softmax", "sigmoid")


def entropies(intra: Mapping[str, Tensor], inter: Tensor) -> dict[str, Tensor]:
    """Return the mean entropies of a router's weights in nats; differentiable.

    All are 0 for a router that has collapsed onto one level of each group and onto one group;
    uniform weights over n entries give log n.

    Args:
        intra: {group: alphas [B, L]}.
        inter: Betas [B, G].

    Returns:
        {"inter": entropy of the betas, "intra_<group>": entropy of that group's alphas}, 0-d.
    """
    found = {"inter": entropy(inter).mean()}
    for group, alpha in intra.items():
        found[f"intra_{group}"] = entropy(alpha).mean()
    return found


class GroupedRouter(Router):
    """Base of all routers: groups of levels, each a weighted sum, side by side in the channels.

    Weights are float32, under autocast too. Features keep the prior's dtype while they are resized
    and enter the weighted sum as float32, so the target is float32. Features carry no gradient;
    the router is trained through its weights.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model; the target lies on its token grid.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels [B, C] that become the target's first tokens, unweighted. Their C
            must equal `out_dim`.
        resize: How maps are brought to the token grid, "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels; narrower ones are zero-padded
            (see `mixing.widen`) [ours].

    Attributes:
        channels: {group: channels of its widest level}; `out_dim` is their sum.

    Raises:
        ConfigError: If the groups, the prefix or an option do not fit the prior.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
    ) -> None:
        super().__init__(levels=levels, geometry=geometry)
        self.groups = resolve_groups(groups, levels, mixed=pad)
        self.channels = {
            group: max(levels[name].channels for name in names)
            for group, names in self.groups.items()
        }
        self.out_dim = sum(self.channels.values())
        self.grid = geometry.grid
        self.content_dim = geometry.width
        self.resize = choice("resize", resize, RESIZES)
        self.prefix = (prefix,) if isinstance(prefix, str) else tuple(prefix)
        self._check_prefix()
        used = set(self.prefix).union(*self.groups.values())
        self.used_levels = tuple(name for name in levels if name in used)

    def _check_prefix(self) -> None:
        for name in self.prefix:
            if name not in self.levels:
                hint = nearest(name, self.levels)
                raise ConfigError(f"prefix: the prior has no level {name!r}{hint}")
            level = self.levels[name]
            if not level.is_vector:
                raise ConfigError(
                    f"prefix: level {name!r} is not a vector; only a vector [B, C] can be a token."
                )
            if level.channels != self.out_dim:
                raise ConfigError(
                    f"prefix: level {name!r} has {level.channels} channels, but the groups' "
                    f"target has {self.out_dim}."
                )

    def extra_repr(self) -> str:
        """List the groups for the printed form of the module."""
        shown = [f"{group}=[{', '.join(names)}]" for group, names in self.groups.items()]
        return ", ".join(shown)

    def mix(self, features: Features, intra: Mapping[str, Tensor], inter: Tensor) -> Tensor:
        """Mix the levels into the target (AHPA, eq. 3 and 4).

        Args:
            features: {level: [B, C, H, W] or [B, C]}, at least the `used_levels`.
            intra: {group: alphas [B, L]}.
            inter: Betas [B, G].

        Returns:
            The target [B, P+N, out_dim], float32.

        Raises:
            ValueError: If a level is missing.
        """
        missing = [name for name in self.used_levels if name not in features]
        if missing:
            hint = nearest(missing[0], features)
            raise ValueError(f"the prior gave no level {missing[0]!r}{hint}")
        with full_precision(inter.device):
            grouped = set().union(*self.groups.values())  # a level of two groups is resized once
            resized = {name: resize_to(features[name], self.grid, self.resize) for name in grouped}
            parts = []
            for column, (group, names) in enumerate(self.groups.items()):
                # Eq. 4's beta is moved into eq. 3's alphas; the sum is linear.
                scales = inter[:, column : column + 1] * intra[group]  # [B, L]
                members = [resized[name] for name in names]
                parts.append(weighted_sum(members, scales, self.channels[group]))
            target = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)  # [B, N, C]
            if self.prefix:
                vectors = [features[name].float() for name in self.prefix]
                first = torch.stack(vectors, dim=1)  # [B, P, C]
                target = torch.cat([first, target], dim=1)
        return target


class LearnedRouter(GroupedRouter):
    """Base of the learned routers: one logit for each alpha and beta, softmax within each group.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        beta: "softmax" over the groups, or "sigmoid", each group by itself. The paper says
            "scaling factors" only.

    Attributes:
        sizes: Number of logits of each group's alphas, then of the betas; `outputs` is their sum.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
        beta: str = "softmax",
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
        )
        self.beta = choice("beta", beta, BETAS)
        alphas = [len(names) for names in self.groups.values()]
        self.sizes = [*alphas, len(self.groups)]
        self.outputs = sum(self.sizes)

    @abstractmethod
    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the logits [B, outputs]: each group's alphas in order, then the betas.

        Args:
            t: Times [B], float32. Autocast is off here.
            content: Grid tokens [B, N, D], or None.
        """

    def weights(self, t: Tensor, content: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({group: alphas [B, L]}, betas [B, G]), float32; see `logits`."""
        with full_precision(t.device):
            logits = self.logits(t.float(), content).float()
            *alphas, beta = logits.split(self.sizes, dim=-1)
            intra = {
                group: alpha.softmax(-1) for group, alpha in zip(self.groups, alphas, strict=True)
            }
            inter = beta.softmax(-1) if self.beta == "softmax" else beta.sigmoid()
        return intra, inter
