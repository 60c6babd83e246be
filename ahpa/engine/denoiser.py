"""AlignedDenoiser: a diffusion transformer that is trained while its blocks are pulled to targets.

`forward` reads like Figure 3 of AHPA. Every part comes from a registry; no method is special.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..registry.contracts import (
    Alignment,
    Backbone,
    Clean,
    Flow,
    FlowLoss,
    Geometry,
    Losses,
    Noised,
    Progress,
    TargetView,
    TokenPlan,
    TokenRouting,
)
from .parts import Parts


class AlignedDenoiser(nn.Module):
    """The trained model: the backbone and the heads of its alignments, and nothing frozen.

    Args:
        geometry: All sizes.
        backbone: The diffusion transformer.
        flow: Noises a batch.
        flow_loss: Compares the prediction with its target.
        alignments: {name: alignment}.
        parts: The frozen parts. They are referred to and not registered, so they are in neither
            `parameters()` nor `state_dict()`.
        token_routing: Chooses the tokens that skip a stretch of blocks in training; None for none.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        backbone: Backbone,
        flow: Flow,
        flow_loss: FlowLoss,
        alignments: Mapping[str, Alignment],
        parts: Parts,
        token_routing: TokenRouting | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.backbone = backbone
        self.flow = flow
        self.flow_loss = flow_loss
        self.alignments = nn.ModuleDict(dict(alignments))
        self.token_routing = token_routing
        self.parts = parts
        read = [alignment.taps for alignment in alignments.values()]
        read += [prior.taps for prior in parts.priors.values()]
        self.taps = frozenset().union(*read)

    def forward(self, clean: Clean, rng: torch.Generator | None, progress: Progress) -> Losses:
        """Compute all losses of a batch.

        Args:
            clean: The encoded batch, as `Parts.encode` returns it.
            rng: The only source of randomness: t and noise, then the condition's dropout, then
                the tokens' route, then whatever the priors draw.
            progress: Where the run stands.

        Returns:
            The terms of the objective, and diagnostics.
        """
        noised = self.flow.sample(clean.streams, rng)
        cond = self.parts.conditioner(clean, rng).repeat(noised.views)
        plan = self.plan(noised, rng)
        out = self.backbone(noised.x, noised.t, cond.value, taps=self.taps, plan=plan)
        view = TargetView(clean, noised, cond, out, rng, progress, plan, self.parts.ema.backbone)
        losses = self.flow_loss(view)
        features = self.parts.features(view)
        for alignment in self.alignments.values():
            losses += alignment(view, features, progress)
        return losses

    def plan(self, noised: Noised, rng: torch.Generator | None) -> TokenPlan:
        """Draw which tokens are in which blocks, and take their groups from the flow."""
        routing = self.token_routing if self.training else None
        route = None if routing is None else routing.draw(noised, rng)
        return TokenPlan(route, noised.attention_groups)
