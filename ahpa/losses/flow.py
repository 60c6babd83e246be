"""The flow-matching loss: mean square of prediction minus velocity (SiT eq. 5; REPA's reduction)."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..registry import FLOW_LOSSES, ConfigError
from ..registry.contracts import Step
from ..registry.numerics import full_precision
from .pairwise import pair
from .schedules import check_weight


@FLOW_LOSSES.register_module()
class FlowMatchingLoss(nn.Module):
    """Mean over the batch of the mean square over C, H, W, in float32, for each stream.

    weights: {stream: weight}, 1 by default. The term of 'image' is `loss_flow`, of another stream `loss_flow_<stream>`.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None):
        super().__init__()
        self.weights = {name: check_weight(f"weights.{name}", value) for name, value in (weights or {}).items()}

    def bind(self, *, flow, backbone) -> None:
        """Told of the model's flow and backbone once; ConfigError where they do not fit this loss. Any flow that predicts
        one thing of the data's shape does."""
        channels = backbone.streams["image"][0]
        if getattr(backbone, "out_channels", channels) != channels:
            raise ConfigError(f"flow_loss: the backbone predicts a variance too (learn_sigma); {type(self).__name__} has "
                              "no use for it: take HybridLoss, or learn_sigma=False.")  # fmt: skip

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses = {}
        for name, pred in step.out.pred.items():
            with full_precision(pred.device):
                v, wanted = pair(pred, step.noisy.target[name])
                error = (v - wanted).square().flatten(1).mean(1).mean()
            key = "loss_flow" if name == "image" else f"loss_flow_{name}"
            losses[key] = self.weights.get(name, 1.0) * error
        return losses
