"""A pair loss and a regulariser: `HuberCosineLoss` and `VarianceFloor`."""

import torch
from torch import Tensor

from ahpa.registry import PAIR_LOSSES, REGULARISERS
from ahpa.registry.contracts import PairLoss, Regulariser, Tokens
from ahpa.registry.precision import full_precision
from ahpa.registry.validation import positive

EPS = 1e-6


def unit(x: Tensor) -> Tensor:
    """Return vectors of length 1, [..., D]; a zero vector stays zero."""
    square = x.square().sum(-1, keepdim=True)
    return x * (square + EPS**2).rsqrt()


@PAIR_LOSSES.register_module()
class HuberCosineLoss(PairLoss):
    """Huber's function of the cosine distance d = 1 - cos of each token, in units of delta.

    d^2 / (2 delta) where d < delta, and d - delta / 2 elsewhere: tokens that agree already pull
    less, and the others pull as under the cosine loss.

    Args:
        dim: Width of the tokens; passed by ahpa.
        delta: Distance at which the pull is full, above 0.
    """

    def __init__(self, *, dim: int, delta: float = 0.25) -> None:
        super().__init__(dim=dim)
        self.delta = positive("delta", delta)

    def forward(self, pred: Tensor, target: Tensor, token_weights: Tensor | None = None) -> Tensor:
        """Return the mean over the tokens of two [B, N, dim] tensors, 0-d float32."""
        with full_precision(pred.device):
            cosine = (unit(pred.float()) * unit(target.float())).sum(-1)
            distance = 1 - cosine
            near = distance.square() / (2 * self.delta)
            far = distance - self.delta / 2
            value = torch.where(distance < self.delta, near, far)
            if token_weights is not None:
                value = value * token_weights
            return value.mean()


@REGULARISERS.register_module()
class VarianceFloor(Regulariser):
    """mean_c max(0, floor - std_c): a floor under each channel's deviation (VICReg, eq. 1).

    The deviation is over the grid tokens of the whole batch (arXiv:2105.04906 takes one vector
    per image): sqrt(var + 1e-4) as there. Prefix tokens are left out.

    Args:
        dim: Width of the tokens; passed by ahpa.
        floor: Standard deviation below which a channel is pushed up, above 0.
    """

    def __init__(self, *, dim: int, floor: float = 1.0) -> None:
        super().__init__(dim=dim)
        self.floor = positive("floor", floor)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the mean shortfall of tokens [B, P+N, dim], 0-d float32."""
        with full_precision(tokens.tokens.device):
            x = tokens.without_prefix().tokens.float().flatten(0, 1)
            deviation = (x.var(0) + 1e-4).sqrt()
            return (self.floor - deviation).relu().mean()
