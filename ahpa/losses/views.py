"""An alignment without a prior: several noisings of one image are pulled towards each other (DUPA).

With `flow.views` = K the batch holds each image K times, with its own t and noise each; the projected tokens of every pair
of views are compared. Both sides learn: there is no stop-gradient and no predictor.
"""

from itertools import combinations

import torch
from torch import Tensor, nn

from ..registry import ALIGNMENTS, LOSSES, PROJECTORS, build
from ..registry.contracts import Backbone, Step, Tokens
from .alignment import check_criteria, check_tap
from .schedules import build_weight


@ALIGNMENTS.register_module()
class ViewAlignment(nn.Module):
    """Weight times the mean of the criteria over all pairs of views of the projected tap.

    tap: block number from 1. projector: from the block's width to `out_dim`, the same for every view. criteria: {name: pair
    loss}. weight: a number or a schedule. ValueError where the flow draws one view only.
    """

    source, levels = None, ()

    def __init__(self, *, name: str, backbone: Backbone, flow, tap: int, out_dim: int = 768, projector=None, criteria=None,
                 weight=1.0):  # fmt: skip
        super().__init__()
        where = f"model.alignments.{name}"
        check_tap(tap, backbone)
        if (views := getattr(flow, "views", 1)) < 2:
            raise ValueError(f"views of one image are compared; set model.flow.views to 2 or more, it is {views}.")
        self.name, self.tap, self.weight = name, tap, build_weight(weight, where=f"{where}.weight")
        self.projector = build(PROJECTORS, projector or dict(type="MLPProjector"), where=f"{where}.projector",
                               dim=backbone.hidden_size, out_dim=out_dim)  # fmt: skip
        self.criteria = nn.ModuleDict()
        for key, cfg in check_criteria(name, criteria).items():
            self.criteria[key] = build(LOSSES, cfg, where=f"{where}.criteria.{key}", dim=out_dim)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Reads step.out.taps -> 'loss_<name>_<criterion>' (weighted) and '<name>/<criterion>'."""
        tokens = step.out.taps[self.tap]
        grid = Tokens(tokens.tokens[:, tokens.prefix :], 0, tokens.grid)
        parts = self.projector(grid).chunk(step.noisy.views)  # each [B, N, C]
        weight, out = self.weight(step), {}
        for key, criterion in self.criteria.items():
            value = torch.stack([criterion(a, b) for a, b in combinations(parts, 2)]).mean()
            out[f"loss_{self.name}_{key}"], out[f"{self.name}/{key}"] = weight * value, value.detach()
        return out
