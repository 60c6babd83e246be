"""Pair losses between projected tokens and a target, both [B, N, C], computed in float32."""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from ..registry import PAIR_LOSSES, ConfigError
from ..registry import validation as valid
from ..registry.contracts import PairLoss
from ..registry.precision import full_precision

DIMENSIONS = {"channels": 2, "tokens": 1, -1: 2, 2: 2, 1: 1}  # of [B, N, C], by `CosineLoss.over`


def pair(
    pred: Tensor,
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return both tensors as float32. Raises ValueError if their shapes differ."""
    if pred.shape != target.shape:
        shapes = f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred and target must have the same shape, {shapes}.")
    return pred.float(), target.float()


def unit(
    x: Tensor,
    over: int,
    eps: float,
) -> Tensor:
    """Normalise to unit length: x / sqrt(|x|^2 + eps^2).

    Value and gradient are finite at zero, also for tiny half-precision vectors, for which the eps
    of `torch.nn.functional.normalize` rounds to zero.

    Args:
        x: Any tensor.
        over: The dimension that holds the vectors.
        eps: Length below which a vector counts as zero.
    """
    return x * (x.square().sum(over, keepdim=True) + eps * eps).rsqrt()


class FullPrecisionLoss(PairLoss):
    """Base of the pair losses: turns autocast off and checks the shapes.

    A subclass defines `compare`, and `per_token` if it has a value for every token; token weights
    then give the mean of weight times value.
    """

    @abstractmethod
    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a 0-d tensor, of two float32 tensors of one shape."""

    def per_token(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each token [B, N]. Raises ValueError if it is not defined."""
        raise ValueError(f"{type(self).__name__} has no value per token to be weighted.")

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        token_weights: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Compare two [B, N, dim] tensors; see `PairLoss.forward`.

        With token weights w [B, N] of mean 1, the loss is mean(w * value of the token).
        """
        with full_precision(pred.device):
            pred, target = pair(pred, target)
            if token_weights is None:
                return self.compare(pred, target)
            return (token_weights.float() * self.per_token(pred, target)).mean()


@PAIR_LOSSES.register_module()
class CosineLoss(FullPrecisionLoss):
    """1 - mean cosine of pred and target, in [0, 2] (AHPA, eq. 5; REPA's loss plus 1).

    Args:
        dim: Width C of the vectors.
        over: What a vector runs over: "channels" compares the C values of each token; "tokens"
            compares the N values of each channel, as SRA's code does, and allows no token weights.
            The numbers of the dimensions, -1 (or 2) and 1, mean the same.
        eps: Length below which a vector counts as zero. It bounds the gradient by 1 / eps, which
            half precision can hold; for unit vectors it changes the value by 5e-9.

    Raises:
        ConfigError: If `over` is neither or `eps` is not above 0.
    """

    def __init__(
        self,
        *,
        dim: int,
        over: str | int = "channels",
        eps: float = 1e-4,
    ) -> None:
        super().__init__(dim=dim)
        if over not in DIMENSIONS or isinstance(over, bool):
            raise ConfigError(f'over: must be "channels" or "tokens", got {over!r}.')
        self.over = DIMENSIONS[over]
        self.eps = valid.positive("eps", eps)

    def cosine(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the cosines: [B, N] over channels, [B, C] over tokens."""
        first = unit(pred, self.over, self.eps)
        second = unit(target, self.over, self.eps)
        return (first * second).sum(self.over)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return 1 - mean cosine."""
        return 1 - self.cosine(pred, target).mean()

    def per_token(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return 1 - cosine of each token [B, N]. Raises ValueError for cosines over tokens."""
        if self.over == 1:
            message = 'CosineLoss: token weights need cosines over channels (over="channels").'
            raise ValueError(message)
        return 1 - self.cosine(pred, target)


@PAIR_LOSSES.register_module()
class L1Loss(FullPrecisionLoss):
    """Mean absolute difference (AHPA, table D.13 b)."""

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean of |pred - target|."""
        return (pred - target).abs().mean()

    def per_token(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean over channels [B, N]."""
        return (pred - target).abs().mean(-1)


@PAIR_LOSSES.register_module()
class MSELoss(FullPrecisionLoss):
    """Mean squared difference."""

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean of (pred - target)^2."""
        return (pred - target).square().mean()

    def per_token(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean over channels [B, N]."""
        return (pred - target).square().mean(-1)


@PAIR_LOSSES.register_module()
class SmoothL1Loss(FullPrecisionLoss):
    """Mean of d^2 / (2 beta) where |d| < beta and |d| - beta / 2 elsewhere, d = pred - target.

    Args:
        dim: Width C of the vectors.
        beta: Where the square turns into a line, above 0. AHPA (table D.13 c) prints none; 0.05 is
            SRA's.

    Raises:
        ConfigError: If `beta` is not above 0.
    """

    def __init__(
        self,
        *,
        dim: int,
        beta: float = 0.05,
    ) -> None:
        super().__init__(dim=dim)
        self.beta = valid.positive("beta", beta)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all elements."""
        return F.smooth_l1_loss(pred, target, beta=self.beta)

    def per_token(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean over channels [B, N]."""
        return F.smooth_l1_loss(pred, target, beta=self.beta, reduction="none").mean(-1)


@PAIR_LOSSES.register_module()
class AutocorrelationLoss(FullPrecisionLoss):
    """|A(pred) - A(target)|^2, where A(F) = F^ F^T [N, N] and the rows of F^ have unit length: the
    structure within a feature map (SARA, arXiv:2503.08253).

    Args:
        dim: Width C of the vectors.
        reduction: "mean" over the N x N entries, or "sum" (the squared Frobenius norm); then the
            mean over the batch. Which of the two SARA uses is unknown.
        eps: Length below which a vector counts as zero.

    Raises:
        ConfigError: If an option is out of its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        reduction: str = "mean",
        eps: float = 1e-4,
    ) -> None:
        super().__init__(dim=dim)
        self.reduction = valid.choice("reduction", reduction, ("mean", "sum"))
        self.eps = valid.positive("eps", eps)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the squared distance of the two autocorrelations."""
        difference = self.correlate(pred) - self.correlate(target)
        total = difference.square().sum((1, 2)).mean()
        return total if self.reduction == "sum" else total / pred.shape[1] ** 2

    def correlate(self, x: Tensor) -> Tensor:
        """Return the cosines between all tokens: [B, N, C] -> [B, N, N]."""
        x = unit(x, -1, self.eps)
        return x @ x.mT
