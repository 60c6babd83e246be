"""`BumpRouter`: a Gaussian bump over the levels whose centre moves with the time."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ahpa.registry import ROUTERS, ConfigError
from ahpa.registry.contracts import Features, Geometry, LevelSpec, Router
from ahpa.registry.precision import full_precision
from ahpa.registry.validation import positive

GROUP = "all"


@ROUTERS.register_module()
class BumpRouter(Router):
    """One group of all levels, weighed by a Gaussian bump: alpha_l ~ exp(-(l - c(t))^2 / 2 s^2).

    Levels are counted l = 0 .. L - 1 in the prior's order. The centre is
    c(t) = (L - 1) sigmoid(a + b t); a, b and log s are learned: three numbers, which can be read
    off. At the start the centre moves from a quarter of the levels at t = 0 to three quarters at
    t = 1, so that noisy images are compared with coarse levels.

    Args:
        levels: The prior's levels; maps of the same width. Passed by ahpa.
        geometry: Sizes of the model; the target lies on its token grid. Passed by ahpa.
        width: Standard deviation s of the bump at the start, in levels.

    Raises:
        ConfigError: If a level is no map, or the levels differ in width.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        width: float = 0.8,
    ) -> None:
        super().__init__(levels=levels, geometry=geometry)
        for name, level in levels.items():
            if not level.is_map:
                raise ConfigError(f"BumpRouter: level {name!r} is not a map [B, C, h, w].")
        widths = sorted({level.channels for level in levels.values()})
        if len(widths) != 1:
            raise ConfigError(f"BumpRouter: levels must have the same width, got {widths}.")
        self.used_levels = tuple(levels)
        self.groups = {GROUP: self.used_levels}
        self.out_dim = widths[0]
        low = torch.logit(torch.tensor(0.25))
        self.offset = nn.Parameter(low)
        self.slope = nn.Parameter(-2 * low)
        self.log_width = nn.Parameter(torch.tensor(positive("width", width)).log())

    def centre(self, t: Tensor) -> Tensor:
        """Return the centre of the bump [B] at times [B], in levels from 0."""
        last = len(self.used_levels) - 1
        return last * torch.sigmoid(self.offset + self.slope * t)

    def weights(self, t: Tensor, content: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({"all": alphas [B, L]}, betas [B, 1] of ones) for times [B]."""
        with full_precision(t.device):
            t = t.float()
            number = torch.arange(len(self.used_levels), device=t.device)
            distance = number - self.centre(t)[:, None]
            logits = -distance.square() / (2 * (2 * self.log_width).exp())
            return {GROUP: logits.softmax(-1)}, torch.ones_like(t)[:, None]

    def mix(self, features: Features, intra: Mapping[str, Tensor], inter: Tensor) -> Tensor:
        """Return the target [B, N, C]: the weighted sum of the levels on the token grid."""
        height, width = self.geometry.grid
        with full_precision(inter.device):
            scales = intra[GROUP] * inter  # [B, L]
            target = inter.new_zeros(len(inter), self.out_dim, height, width)
            for column, name in enumerate(self.used_levels):
                level = features[name].float()
                if level.shape[-1] > width:
                    level = F.adaptive_avg_pool2d(level, (height, width))
                elif level.shape[-1] < width:
                    level = F.interpolate(level, (height, width), mode="bilinear")
                target = target + scales[:, column].view(-1, 1, 1, 1) * level
        return target.flatten(2).transpose(1, 2)
