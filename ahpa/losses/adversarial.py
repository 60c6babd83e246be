"""An adversarial pair loss: a critic tells projected tokens from targets, and the backbone learns to fool it (SARA).

The critic is a parameter of its loss, and one backward serves both players: the fooling term runs the critic with
detached parameters, the judging term sees detached tokens, so each gets exactly its own gradient. SARA's full text could
not be read: the weights, the warm-up and the critic follow one re-implementation by others and are unverified.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..registry import LOSSES
from ..registry.contracts import PairLoss
from ..registry.numerics import full_precision
from .pairwise import pair


class Residual(nn.Module):
    """ResNet's basic block: two 3 x 3 convolutions with norms, plus the input (through a 1 x 1 where sizes differ)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.GroupNorm(math.gcd(32, outputs), outputs) for _ in range(2))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Critic(nn.Module):
    """A ResNet-18 cut after its second stage: 1 x 1 stem, two blocks of `width`, two of 2 `width` at half the side, mean,
    one logit. GroupNorm in place of BatchNorm: a batch is judged image by image, and there are no running sums.
    """

    def __init__(self, *, dim: int, width: int = 64):
        super().__init__()
        self.stem = nn.Conv2d(dim, width, 1)
        self.blocks = nn.Sequential(Residual(width, width), Residual(width, width),
                                    Residual(width, 2 * width, stride=2), Residual(2 * width, 2 * width))  # fmt: skip
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B]: above 0 for a target."""
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3))).squeeze(1)


def as_map(tokens: Tensor) -> Tensor:
    """[B, N, C] of a square grid -> [B, C, h, w]. ValueError for an N that is no square."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(f"AdversarialLoss: {tokens.shape[1]} tokens are no square grid.")
    return tokens.transpose(1, 2).unflatten(2, (side, side))


@LOSSES.register_module()
class AdversarialLoss(PairLoss):
    """{'fool': BCE(D(pred), 1), 'judge': (BCE(D(pred), 0) + BCE(D(target), 1)) / 2} (SARA's distribution term).

    warmup: calls before the fooling term counts. every: the critic learns at each such call. lr, betas: of the critic's
    own parameter group, which is clipped by itself. The judging term is the critic's own objective: no weight of the
    criterion or the alignment scales it.
    """

    unweighted = ("judge",)

    def __init__(self, *, dim: int, width: int = 64, warmup: int = 500, every: int = 5, lr: float = 2e-4,
                 betas=(0.5, 0.999)):  # fmt: skip
        super().__init__()
        for name, value, least in (("width", width, 1), ("warmup", warmup, 0), ("every", every, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}.")
        if not lr > 0:
            raise ValueError(f"lr: must be above 0, got {lr!r}.")
        self.critic, self.warmup, self.every = Critic(dim=dim, width=width), warmup, every
        self.optimizer_options = dict(lr=float(lr), betas=tuple(betas), weight_decay=0.0)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        with full_precision(pred.device):
            pred, target = (as_map(x) for x in pair(pred, target))
            frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
            fool = F.softplus(-functional_call(self.critic, frozen, (pred,))).mean()
            fake, real = self.critic(pred.detach()), self.critic(target.detach())
            judge = 0.5 * (F.softplus(fake).mean() + F.softplus(-real).mean())
            fooling, judging = self.calls >= self.warmup, self.calls % self.every == 0
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return {"fool": fool * fooling, "judge": judge * judging}
