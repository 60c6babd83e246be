"""Routers without parameters: uniform weights, and the paper's heuristics that hand over from the
mid to the deep levels (AHPA, Table D.15)."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..registry import ROUTERS, ConfigError
from ..registry.contracts import Geometry, LevelSpec
from ..registry.validation import number
from .base import GroupedRouter
from .grouping import Groups


@ROUTERS.register_module()
class StaticRouter(GroupedRouter):
    """The same weights at every t: alpha = 1/L in each group, beta = 1/G (AHPA, Tables 1, 2, D.15).

    With one group of one level it passes that level on unchanged, as REPA and most other methods
    need it. See `GroupedRouter` for the options.
    """

    def inter(self, t: Tensor) -> Tensor:
        """Return the groups' betas [B, G] for times [B], float32."""
        count = len(self.groups)
        return torch.full((len(t), count), 1 / count, device=t.device)

    def weights(self, t: Tensor, content: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({group: uniform alphas [B, L]}, betas [B, G]), float32."""
        intra = {}
        for group, names in self.groups.items():
            size = len(names)
            intra[group] = torch.full((len(t), size), 1 / size, device=t.device)
        return intra, self.inter(t.float())


class HandOver(StaticRouter):
    """Base of the heuristics: beta_deep = `share(t)`, beta_mid = 1 - beta_deep, alphas uniform.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: A form that gives the two groups "mid" and "deep"; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.

    Raises:
        ConfigError: If the groups are not exactly "mid" and "deep".
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
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
        )
        if sorted(self.groups) != ["deep", "mid"]:
            raise ConfigError(
                f"groups: {type(self).__name__} hands over from a group 'mid' to a group 'deep' "
                "and needs exactly these two, as groups='4/4' or 'G3+G4' gives them; "
                f"got {', '.join(self.groups)}."
            )

    @abstractmethod
    def share(self, t: Tensor) -> Tensor:
        """Return beta_deep [B] in [0, 1] for times [B], float32."""

    def inter(self, t: Tensor) -> Tensor:
        """Return the groups' betas [B, G] for times [B], float32."""
        deep = self.share(t)
        betas = [deep if group == "deep" else 1 - deep for group in self.groups]
        return torch.stack(betas, dim=-1)


@ROUTERS.register_module()
class LinearRouter(HandOver):
    """Linear heuristic: beta_deep = t, beta_mid = 1 - t (AHPA, Table D.15).

    The paper names the heuristic without its formula; the direction (deep levels at high noise) is
    inferred. See `GroupedRouter` for the options.
    """

    def share(self, t: Tensor) -> Tensor:
        """Return beta_deep = t."""
        return t


@ROUTERS.register_module()
class SigmoidRouter(HandOver):
    """S-shaped heuristic: beta_deep = sigmoid(slope (t - midpoint)), beta_mid = 1 - beta_deep.

    [ours] It interpolates between `LinearRouter` and a hard switch. A negative slope hands over in
    the other direction.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: A form that gives the two groups "mid" and "deep"; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        midpoint: The time t at which both betas are 1/2.
        slope: Steepness at the midpoint.
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
        midpoint: float = 0.5,
        slope: float = 10.0,
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
        )
        self.midpoint = number("midpoint", midpoint)
        self.slope = number("slope", slope)

    def share(self, t: Tensor) -> Tensor:
        """Return beta_deep = sigmoid(slope (t - midpoint))."""
        return torch.sigmoid(self.slope * (t - self.midpoint))
