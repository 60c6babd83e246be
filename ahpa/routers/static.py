"""Routers without parameters: uniform weights, and the paper's hand-made hand-overs from mid to deep (Table D.15)."""

import torch
from torch import Tensor

from ..registry import ROUTERS
from .base import GroupedRouter


@ROUTERS.register_module()
class StaticRouter(GroupedRouter):
    """The same weights at every t: alpha = 1/L in each group, beta = 1/G (AHPA Tables 1, 2 and D.15).

    With one group of one level it passes that level on as it is, as REPA and most other methods need.
    """

    def inter(self, t: Tensor) -> Tensor:
        """t [B] float32 -> the groups' betas [B, G]."""
        return torch.full((len(t), len(self.groups)), 1 / len(self.groups), device=t.device)

    def weights(self, t: Tensor, content: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        sizes = {group: len(names) for group, names in self.groups.items()}
        intra = {group: torch.full((len(t), size), 1 / size, device=t.device) for group, size in sizes.items()}
        return intra, self.inter(t.float())


class HandOver(StaticRouter):
    """Base of the heuristics: beta_deep = `share(t)`, beta_mid = 1 - beta_deep, alphas uniform."""

    def __init__(self, **options):
        super().__init__(**options)
        if sorted(self.groups) != ["deep", "mid"]:
            raise ValueError(
                f"{type(self).__name__} hands over from a group 'mid' to a group 'deep' and needs exactly these two, "
                f"as groups='4/4' or 'G3+G4' gives them; got {', '.join(self.groups)}."
            )

    def share(self, t: Tensor) -> Tensor:
        """t [B] -> beta_deep [B] in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define share(t)")

    def inter(self, t: Tensor) -> Tensor:
        deep = self.share(t)
        return torch.stack([deep if group == "deep" else 1 - deep for group in self.groups], dim=-1)


@ROUTERS.register_module()
class LinearRouter(HandOver):
    """Linear heuristic: beta_deep = t, beta_mid = 1 - t, so the deep levels guide at high noise (AHPA Table D.15).

    The paper names the heuristic without its formula; the direction is inferred.
    """

    def share(self, t: Tensor) -> Tensor:
        return t


@ROUTERS.register_module()
class SigmoidRouter(HandOver):
    """S-shaped heuristic: beta_deep = sigmoid(slope (t - midpoint)), beta_mid = 1 - beta_deep.

    Not in the paper: it interpolates between `LinearRouter` and a hard switch. A negative slope hands over the other
    way.
    """

    def __init__(self, *, midpoint: float = 0.5, slope: float = 10.0, **options):
        super().__init__(**options)
        self.midpoint, self.slope = float(midpoint), float(slope)

    def share(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * (t - self.midpoint))
