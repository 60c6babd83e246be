"""The loss of DiT: the noise's mean square, and a variational bound that trains the variance (arXiv:2102.09672).

L_hybrid = L_simple + lambda L_vlb (eq. 16), lambda = 0.001. L_vlb is a sum over the T steps, of which a training step
draws one uniformly, so T L_i estimates it: the bound's term is weighed by lambda T, 1 for T = 1000. L_i is in bits a
dimension: nats, averaged over C, H, W, divided by log 2.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..registry import FLOW_LOSSES, ConfigError
from ..registry.contracts import Step
from ..registry.numerics import full_precision
from .flow import FlowMatchingLoss
from .schedules import check_weight

HALF_BIN = 1 / 255  # of 8-bit values on [-1, 1] (DDPM section 3.3)
LAST_BIN = 0.999  # values beyond it belong to the outermost bins, which are open (as in DDPM's code; eq. 13 says 1)
LEAST = 1e-12  # of a probability whose logarithm is taken


def gaussian_kl(mean: Tensor, log_variance: Tensor, other: Tensor, log_other: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) || N(other, exp log_other)), an element each, in nats."""
    ratio = (log_variance - log_other).exp() + (mean - other).square() * (-log_other).exp()
    return 0.5 * (ratio - 1 + log_other - log_variance)


def discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the mass that N(mean, exp log_variance) puts on the bin of x: DDPM eq. 13, an element each, in nats."""
    rate = (-0.5 * log_variance).exp()
    above, below = (x - mean + HALF_BIN) * rate, (x - mean - HALF_BIN) * rate
    mass = torch.special.ndtr(above) - torch.special.ndtr(below)
    mass = torch.where(x < -LAST_BIN, torch.special.ndtr(above), mass)
    mass = torch.where(x > LAST_BIN, torch.special.ndtr(-below), mass)
    return -mass.clamp_min(LEAST).log()


@FLOW_LOSSES.register_module()
class HybridLoss(FlowMatchingLoss):
    """Mean square of the noise, and the variational bound of the learned variance (arXiv:2102.09672, eq. 16; DiT's loss).

    weights: {stream: weight} of the mean squares, 1 by default; vlb_weight: lambda. The bound sees the predicted noise
    without gradient, so it trains the variance alone. It compares q(x_{i-1} | x_i, x0) with the model's step by a KL
    divergence for i > 0, and takes the discretised Gaussian's likelihood of the data for i = 0. The terms are `loss_flow`
    and `loss_flow_vlb`; other streams than 'image' have no variance. Needs a DiscreteFlow and a backbone with learn_sigma.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None, vlb_weight: float = 0.001):
        super().__init__(weights=weights)
        self.vlb_weight = check_weight("vlb_weight", vlb_weight)

    def bind(self, *, flow, backbone) -> None:
        """ConfigError unless the flow is discrete and the backbone gives a variance: told before anything is trained."""
        channels = backbone.streams["image"][0]
        self.check(flow, channels, getattr(backbone, "out_channels", channels))

    @staticmethod
    def check(flow, channels: int, outputs: int) -> None:
        if getattr(getattr(flow, "path", None), "predicts", "velocity") != "noise":
            raise ConfigError(f"flow_loss: HybridLoss needs flow=dict(type='DiscreteFlow'), got {type(flow).__name__}.")
        if outputs != 2 * channels:
            raise ConfigError(f"flow_loss: HybridLoss needs a backbone with learn_sigma=True, whose output has "
                              f"{2 * channels} channels; this one's has {outputs}.")  # fmt: skip

    def forward(self, step: Step) -> dict[str, Tensor]:
        path, pred, x0 = getattr(step.flow, "path", None), step.out.pred["image"], step.noisy.data["image"]
        channels = x0.shape[1]
        self.check(step.flow, channels, pred.shape[1])
        eps, v = pred[:, :channels], pred[:, channels:]
        alone = replace(step, out=step.out._replace(pred={**step.out.pred, "image": eps}))
        losses = super().forward(alone)
        with full_precision(pred.device):
            bits = self.bound(
                path, x0.float(), step.noisy.x["image"].float(), step.noisy.t, eps.detach().float(), v.float()
            )
            losses["loss_flow_vlb"] = self.vlb_weight * path.steps * bits.mean()
        return losses

    @staticmethod
    def bound(path, x0: Tensor, x: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """The bound's term of each sample [B] in bits a dimension; all of x0, x, eps and v are [B, C, h, w]."""
        index, schedule = path.index(t), path.schedule
        mean = schedule.posterior_mean(schedule.data(x, eps, index), x, index)
        log_variance = schedule.log_variance(v, index)
        true = schedule.posterior_mean(x0, x, index)
        kl = gaussian_kl(true, schedule.over("log_small", index, x), mean, log_variance)
        nll = discretised_nll(x0, mean, log_variance)
        nats = torch.where((index == 0)[:, None], nll.flatten(1), kl.flatten(1)).mean(1)
        return nats / math.log(2)
