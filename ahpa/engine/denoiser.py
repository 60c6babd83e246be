"""AlignedDenoiser: a diffusion transformer that is trained while its blocks are pulled to targets.

`forward` reads like Figure 3 of AHPA. Every part comes from a registry; no method is special.
"""

from collections.abc import Iterable, Mapping
from typing import cast

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
    Tap,
    TargetView,
    TokenPlan,
    TokenRouting,
)
from .parts import Parts, wanted_levels


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

    Attributes:
        ended: Names of the alignments that add nothing any more.
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
        self.taps = self.needed_taps(alignments.values())
        self.ended: set[str] = set()

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
        for _name, alignment in self.named_alignments():
            if alignment.ended(progress):
                losses = losses.reaching(alignment.parameters())
            else:
                losses += alignment(view, features, progress)
        return losses

    def named_alignments(self) -> Iterable[tuple[str, Alignment]]:
        """Iterate over (name, alignment)."""
        return cast(Iterable[tuple[str, Alignment]], self.alignments.items())

    def drop_ended(self, progress: Progress) -> list[str]:
        """Stop computing levels and taps that only alignments read whose weight is 0 from here on.

        Returns:
            The names of the alignments that have ended since the last call.
        """
        ended = {name for name, own in self.named_alignments() if own.ended(progress)}
        new = sorted(ended - self.ended)
        if new:
            self.ended = ended
            active = [own for name, own in self.named_alignments() if name not in ended]
            self.parts.wanted = wanted_levels(self.parts.priors, self.parts.streams, active)
            self.taps = self.needed_taps(active)
        return new

    def needed_taps(self, alignments: Iterable[Alignment]) -> frozenset[Tap]:
        """Return the taps that alignments, and priors of which anything is wanted, read."""
        wanted = self.parts.wanted
        read = [alignment.taps for alignment in alignments]
        read += [prior.taps for name, prior in self.parts.priors.items() if wanted[name]]
        return frozenset[Tap]().union(*read)

    def plan(self, noised: Noised, rng: torch.Generator | None) -> TokenPlan:
        """Draw which tokens are in which blocks, and take their groups from the flow."""
        routing = self.token_routing if self.training else None
        route = None if routing is None else routing.draw(noised, rng)
        return TokenPlan(route, noised.attention_groups)
