"""Pairwise losses between projected tokens and a target, both [B, N, C]: computed in float32, also under autocast."""

import torch.nn.functional as F
from torch import Tensor

from ..registry import LOSSES
from ..registry.contracts import PairLoss
from ..registry.numerics import full_precision


def pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32; ValueError if the shapes differ."""
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must have one shape.")
    return pred.float(), target.float()


def unit(x: Tensor, over: int, eps: float) -> Tensor:
    """x / sqrt(|x|^2 + eps^2): unit length for any vector well above eps, finite in value and gradient at zero.

    (`F.normalize` of a tiny half-precision vector divides by an eps that is zero there.)
    """
    return x * (x.square().sum(over, keepdim=True) + eps * eps).rsqrt()


class FullPrecisionLoss(PairLoss):
    """Base: turns autocast off and checks the shapes; a subclass compares float32 [B, N, C] with `compare`."""

    def __init__(self, *, dim: int):
        super().__init__()
        self.dim = dim

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define compare(pred, target)")

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        with full_precision(pred.device):
            return self.compare(*pair(pred, target))


@LOSSES.register_module()
class CosineLoss(FullPrecisionLoss):
    """1 - mean cosine of pred and target, in [0, 2] (AHPA eq. 5; REPA's loss up to a constant).

    over: the dimension that is reduced, -1 channels; 1 reduces over tokens, as SRA's code does. eps: length below which
    a vector counts as zero; it bounds the gradient by 1/eps, which half precision can hold (at length 1 the value changes
    by 5e-9).
    """

    def __init__(self, *, dim: int, over: int = -1, eps: float = 1e-4):
        super().__init__(dim=dim)
        if over not in (-1, 1, 2):
            raise ValueError(f"CosineLoss: over must be -1 (channels) or 1 (tokens), got {over}.")
        self.over, self.eps = over, eps

    def compare(self, pred, target):
        cosine = (unit(pred, self.over, self.eps) * unit(target, self.over, self.eps)).sum(self.over)
        return 1 - cosine.mean()


@LOSSES.register_module()
class L1Loss(FullPrecisionLoss):
    """Mean absolute difference (AHPA Table D.13 b)."""

    def compare(self, pred, target):
        return (pred - target).abs().mean()


@LOSSES.register_module()
class MSELoss(FullPrecisionLoss):
    """Mean squared difference."""

    def compare(self, pred, target):
        return (pred - target).square().mean()


@LOSSES.register_module()
class SmoothL1Loss(FullPrecisionLoss):
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2 (AHPA Table D.13 c gives no beta; 0.05 is SRA's)."""

    def __init__(self, *, dim: int, beta: float = 0.05):
        super().__init__(dim=dim)
        if beta <= 0:
            raise ValueError(f"SmoothL1Loss: beta must be above 0, got {beta}.")
        self.beta = beta

    def compare(self, pred, target):
        return F.smooth_l1_loss(pred, target, beta=self.beta)


@LOSSES.register_module()
class AutocorrelationLoss(FullPrecisionLoss):
    """|A(pred) - A(target)|^2 with A(F) = F^ F^T [N, N], rows F^ of unit length: the structure inside a map (SARA).

    reduction: 'mean' over the N x N entries, or 'sum' (the Frobenius norm), then the mean of the batch; which of them SARA
    uses is not known. eps: length below which a vector counts as zero.
    """

    def __init__(self, *, dim: int, reduction: str = "mean", eps: float = 1e-4):
        super().__init__(dim=dim)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"AutocorrelationLoss: reduction must be 'mean' or 'sum', got {reduction!r}.")
        self.reduction, self.eps = reduction, eps

    def compare(self, pred, target):
        difference = self.correlate(pred) - self.correlate(target)  # [B, N, N]
        total = difference.square().sum((1, 2)).mean()
        return total if self.reduction == "sum" else total / pred.shape[1] ** 2

    def correlate(self, x: Tensor) -> Tensor:
        x = unit(x, -1, self.eps)
        return x @ x.mT
