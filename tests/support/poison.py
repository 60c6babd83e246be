"""A flow loss that is not finite on request: in the loss or only in a gradient, on one process or
on all."""

from dataclasses import replace

import torch

from ahpa.losses.flow import FlowMatchingLoss
from ahpa.registry import FLOW_LOSSES


class BadGradient(torch.autograd.Function):
    """The identity with a gradient of infinity."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


@FLOW_LOSSES.register_module()
class PoisonFlowLoss(FlowMatchingLoss):
    """Flow matching that is NaN (or has an infinite gradient) at the iterations `at` of `rank`."""

    def __init__(self, *, geometry, flow, at=(), kind="nan", rank=0):
        super().__init__(geometry=geometry, flow=flow)
        self.at = tuple(at)
        self.kind = kind
        self.rank = rank

    def forward(self, view):
        losses = super().forward(view)
        here = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if view.progress.iteration not in self.at or here != self.rank:
            return losses
        first, *others = losses.terms
        bad = self.kind == "gradient"
        value = BadGradient.apply(first.value) if bad else first.value * float(self.kind)
        return replace(losses, terms=(first._replace(value=value), *others))
