"""A flow loss that is not finite when told so: in the loss or only in a gradient, on one process or on all."""

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
    """Flow matching that yields NaN (or an infinite gradient) at the iterations `at`, on the process `rank`."""

    def __init__(self, *, at=(), kind="nan", rank=0):
        super().__init__()
        self.at, self.kind, self.rank = tuple(at), kind, rank

    def forward(self, step):
        losses = super().forward(step)
        here = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if step.iteration in self.at and here == self.rank:
            loss = losses["loss_flow"]
            losses["loss_flow"] = BadGradient.apply(loss) if self.kind == "gradient" else loss * float(self.kind)
        return losses
