"""The flow-matching loss: mean square of prediction minus target (SiT, arXiv:2401.08740)."""

from collections.abc import Mapping

from torch import Tensor

from ..registry import FLOW_LOSSES, ConfigError, nearest
from ..registry import validation as valid
from ..registry.contracts import Flow, FlowLoss, Geometry, Losses, Streams, TargetView
from ..registry.precision import full_precision
from ..registry.values import Term
from .pairwise import pair


def mean_square(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean square over all but the batch, [B], in float32. Shapes must be equal."""
    first, second = pair(pred, target)
    return (first - second).square().flatten(1).mean(1)


class StreamLoss(FlowLoss):
    """Base of the flow losses: the mean squares of the streams, with a weight for each.

    Args:
        geometry: Sizes of the model.
        flow: The flow, which converts predictions into its target.
        weights: {stream: weight}, 1 by default.

    Raises:
        ConfigError: If a weight is no finite number of at least 0, or its stream is unknown.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        flow: Flow,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(geometry=geometry, flow=flow)
        self.weights = {}
        for name, value in (weights or {}).items():
            if name not in geometry.streams:
                valid_names = nearest(name, geometry.streams)
                raise ConfigError(f"weights: {name!r} is not a stream of the model{valid_names}")
            self.weights[name] = valid.weight(f"weights.{name}", value)

    def stream_terms(
        self,
        pred: Streams,
        target: Streams,
    ) -> tuple[Term, ...]:
        """Return a term for each stream: "flow" for the image, "flow/<stream>" for another one."""
        terms = []
        for stream, value in pred.items():
            with full_precision(value.device):
                error = mean_square(value, target[stream]).mean()
            name = "flow" if stream == "image" else f"flow/{stream}"
            terms.append(Term(name, error, self.weights.get(stream, 1.0)))
        return tuple(terms)


@FLOW_LOSSES.register_module()
class FlowMatchingLoss(StreamLoss):
    """Mean over the batch of the mean square over all dimensions, in float32, for each stream.

    The terms are "flow" for the image and "flow/<stream>" for another stream. It fits every flow
    whose target has the data's shape.

    Args:
        geometry: Sizes of the model.
        flow: The flow, which converts predictions into its target.
        weights: {stream: weight}, 1 by default.

    Raises:
        ConfigError: If the backbone predicts a variance too, or for wrong weights.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        flow: Flow,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(geometry=geometry, flow=flow, weights=weights)
        if geometry.out_channels != geometry.latent_channels:
            raise ConfigError(
                f"{type(self).__name__} does not train a variance, which this backbone "
                "predicts too; use HybridLoss, or learn_sigma=False."
            )

    def forward(self, view: TargetView) -> Losses:
        """Compare the prediction, converted into the flow's target, with the target."""
        return Losses(self.stream_terms(self.converted(view), view.noised.target))

    def converted(self, view: TargetView) -> Streams:
        """Return the prediction as what the flow provides, float32."""
        pred = {name: value.float() for name, value in view.out.pred.items()}
        with full_precision(view.noised.t.device):
            return self.flow.to_target(pred, view.noised.x, view.noised.t)
