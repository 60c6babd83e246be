"""Contrastive flow matching (Delta-FM, arXiv:2506.05350): predictions are pushed away from the
targets of other samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..registry import FLOW_LOSSES, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Flow, Geometry, Losses, TargetView
from ..registry.precision import full_precision
from ..registry.values import Term, repeat
from .flow import FlowMatchingLoss, mean_square


@FLOW_LOSSES.register_module()
class ContrastiveFlowLoss(FlowMatchingLoss):
    """mean_i |v^_i - v_i|^2 - weight * mean_i |v^_i - v_j(i)|^2, with j(i) another sample.

    v^ is the prediction and v the target. j is uniform over the other images of the micro-batch and
    drawn from the step's generator here, that is after the times, the noise and the label dropout.
    The first part has the terms of FlowMatchingLoss; the second is the term "flow/contrast" of
    weight -`weight` and concerns the image alone, not other streams.

    Args:
        geometry: Sizes of the model.
        flow: The flow, which converts predictions into its target.
        weights: {stream: weight} of the first part, 1 by default.
        weight: Weight of the second part.
        skip_null: Leave samples with a dropped condition out of the second part, and divide by the
            number of the remaining ones in place of B.
        other_class: Draw j among the samples of another class. A sample for which there is none is
            left out in the same way.

    Raises:
        ConfigError: If `other_class` is set for a model without class labels.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        flow: Flow,
        weights: Mapping[str, float] | None = None,
        weight: float = 0.05,
        skip_null: bool = False,
        other_class: bool = False,
    ) -> None:
        super().__init__(geometry=geometry, flow=flow, weights=weights)
        self.weight = valid.weight("weight", weight)
        self.skip_null = valid.boolean("skip_null", skip_null)
        self.other_class = valid.boolean("other_class", other_class)
        if other_class and geometry.num_classes is None:
            raise ConfigError("other_class: needs a model with class labels, this one has none.")

    def forward(self, view: TargetView) -> Losses:
        """Compare the prediction with the target and with the targets of other samples.

        Raises:
            ConfigError: If the micro-batch holds one image only.
        """
        pred = self.converted(view)
        terms = self.stream_terms(pred, view.noised.target)
        allowed = self.partners(view)
        kept = allowed.any(1)
        if self.skip_null and view.cond.dropped is not None:
            kept = kept & ~view.cond.dropped
        with full_precision(allowed.device):
            target = view.noised.target["image"]
            other = target[draw_partners(allowed, view.rng)]
            distance = mean_square(pred["image"], other)
            value = (distance * kept).sum() / kept.sum().clamp_min(1)
        return Losses((*terms, Term("flow/contrast", value, -self.weight)))

    def partners(self, view: TargetView) -> Tensor:
        """Return which samples j may be drawn for each i: bool [B, B], False for the same image."""
        views = view.noised.views
        count = len(view.noised.sample_t)
        images = torch.arange(count // views, device=view.noised.t.device)
        if len(images) < 2:
            raise ConfigError(
                "model.flow_loss: ContrastiveFlowLoss needs at least 2 images in a micro-batch, "
                "got 1; raise train_dataloader.global_batch_size."
            )
        identity = repeat(images, views)
        allowed = identity[:, None] != identity
        if self.other_class:
            labels = repeat(view.clean.labels, views)
            assert labels is not None, "a batch of a model with classes must hold labels"
            allowed = allowed & (labels[:, None] != labels)
        return allowed


def draw_partners(
    allowed: Tensor,
    rng: torch.Generator | None,
) -> Tensor:
    """Draw j(i) uniformly among the allowed samples of each row.

    Args:
        allowed: Bool [B, B].
        rng: The source of B x B uniform numbers, of which the largest allowed one of a row wins.

    Returns:
        int64 [B]; arbitrary for a row without an allowed sample.
    """
    scores = torch.rand(allowed.shape, generator=rng, device=allowed.device)
    return scores.masked_fill(~allowed, -1.0).argmax(1)
