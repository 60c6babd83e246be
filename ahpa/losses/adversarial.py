"""An adversarial pair loss (SARA, arXiv:2503.08253): a critic tells projected tokens from targets,
and the backbone learns to fool it.

SARA's full text could not be read: the weights, the warm-up and the critic follow one public
re-implementation and are unverified."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..registry import PAIR_LOSSES
from ..registry import validation as valid
from ..registry.contracts import PairLoss
from ..registry.precision import full_precision
from .pairwise import pair


class Residual(nn.Module):
    """ResNet's basic block: two 3 x 3 convolutions with norms, plus a shortcut.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        groups = math.gcd(32, outputs)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, h, w] to [B, outputs, h / stride, w / stride]."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Critic(nn.Module):
    """A ResNet-18 cut after its second stage: a 1 x 1 stem, two blocks of `width` channels, two of
    2 `width` at half the side, the spatial mean and one logit.

    GroupNorm replaces BatchNorm, so that images are judged one by one and no running statistics
    are kept.

    Args:
        dim: Channels of the maps.
        width: Channels of the first stage.
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(dim, width, 1)
        self.blocks = nn.Sequential(
            Residual(width, width),
            Residual(width, width),
            Residual(width, 2 * width, stride=2),
            Residual(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B] for maps [B, C, h, w]; above 0 means a target."""
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3))).squeeze(1)


def as_map(tokens: Tensor) -> Tensor:
    """Arrange tokens [B, N, C] as a square map [B, C, h, w]. Raises ValueError for another N."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(
            f"AdversarialLoss needs a square token grid, got {tokens.shape[1]} tokens."
        )
    return tokens.transpose(1, 2).unflatten(2, (side, side))


@PAIR_LOSSES.register_module()
class AdversarialLoss(PairLoss):
    """SARA's distribution term: "fool" = BCE(D(pred), 1) for the backbone, and
    "judge" = (BCE(D(pred), 0) + BCE(D(target), 1)) / 2 for the critic D.

    The critic is a part of the loss, and one backward pass serves both players: "fool" runs the
    critic with detached parameters and "judge" sees detached tokens, so each receives its own
    gradient only. "judge" is the critic's own objective, which no weight scales. The critic's
    parameters form an optimiser group of their own.

    Args:
        dim: Width C of the tokens.
        width: Channels of the critic's first stage.
        warmup: Training steps before "fool" counts.
        every: The critic learns at every such step.
        lr: Learning rate of the critic's parameter group.
        betas: Its Adam betas.

    Raises:
        ConfigError: If an option is out of its range.
    """

    items = ("fool", "judge")
    unweighted = ("judge",)
    calls: Tensor

    def __init__(
        self,
        *,
        dim: int,
        width: int = 64,
        warmup: int = 500,
        every: int = 5,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(dim=dim)
        width = valid.positive_int("width", width)
        self.warmup = valid.integer("warmup", warmup)
        self.every = valid.positive_int("every", every)
        self.optimizer_options = {
            "lr": valid.positive("lr", lr),
            "betas": tuple(valid.probability("betas", beta) for beta in betas),
            "weight_decay": 0.0,
        }
        self.critic = Critic(dim=dim, width=width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        token_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return {"fool", "judge"} for tokens [B, N, C] of a square grid.

        Raises:
            ValueError: If token weights are given, or the grid is not square.
        """
        if token_weights is not None:
            raise ValueError("AdversarialLoss has no value per token to be weighted.")
        with full_precision(pred.device):
            pred, target = pair(pred, target)
            pred, target = as_map(pred), as_map(target)
            frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
            fool = F.softplus(-functional_call(self.critic, frozen, (pred,))).mean()
            fake = self.critic(pred.detach())
            real = self.critic(target.detach())
            judge = 0.5 * (F.softplus(fake).mean() + F.softplus(-real).mean())
            fooling = self.calls >= self.warmup
            judging = self.calls % self.every == 0
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return {"fool": fool * fooling, "judge": judge * judging}
