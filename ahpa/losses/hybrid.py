"""The loss of DiT: the mean square of the noise, and a variational bound that trains the variance
(Nichol & Dhariwal, arXiv:2102.09672).

L_hybrid = L_simple + lambda L_vlb (eq. 16) with lambda = 0.001. L_vlb is a sum over the T steps, of
which a training step draws one uniformly; T L_i is an unbiased estimate of it, so the bound has the
weight lambda T, which is 1 for T = 1000."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..registry import FLOW_LOSSES, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Flow, Geometry, Losses, TargetView
from ..registry.precision import full_precision
from ..registry.values import Term
from .flow import StreamLoss

HALF_BIN = 1 / 255
"""Half a bin of 8-bit values on [-1, 1] (DDPM, section 3.3)."""

LAST_BIN = 0.999
"""Values beyond it are in the outermost bins, which are open (DDPM's code; its eq. 13 has 1)."""

LEAST = 1e-12
"""The least probability whose logarithm is taken."""


class Posterior(Protocol):
    """What the bound needs of a noise schedule; the flow room's Schedule has it."""

    def over(
        self,
        name: str,
        index: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Look up a table at steps, broadcasting over x."""

    def data(
        self,
        x: Tensor,
        eps: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return x0, given x and the noise."""

    def posterior_mean(
        self,
        x0: Tensor,
        x: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return the mean of q(x_{i-1} | x_i, x0)."""

    def log_variance(self, v: Tensor, index: Tensor) -> Tensor:
        """Return the learned log variance."""


@runtime_checkable
class ScheduledPath(Protocol):
    """What the bound needs of a path with discrete steps; DiscretePath has it."""

    steps: int

    @property
    def schedule(self) -> Posterior:
        """Return the noise schedule."""

    def index(self, t: Tensor) -> Tensor:
        """Return the step of a time."""


def gaussian_kl(
    mean: Tensor,
    log_variance: Tensor,
    other: Tensor,
    log_other: Tensor,
) -> Tensor:
    """Return KL(N(mean, exp log_variance) || N(other, exp log_other)) per element, in nats."""
    ratio = (log_variance - log_other).exp() + (mean - other).square() * (-log_other).exp()
    return 0.5 * (ratio - 1 + log_other - log_variance)


def discretised_nll(
    x: Tensor,
    mean: Tensor,
    log_variance: Tensor,
) -> Tensor:
    """Return -log of the mass that N(mean, exp log_variance) puts on the bin of x (DDPM, eq. 13),
    per element, in nats.

    The normal distribution function is exact. DiT's code approximates it by a tanh, with an error
    of up to 1.8e-4, which matters where little mass lies: one element in the tails may differ by 7
    bits, the mean over elements one standard deviation off by less than 1e-4.
    """
    rate = (-0.5 * log_variance).exp()
    above = (x - mean + HALF_BIN) * rate
    below = (x - mean - HALF_BIN) * rate
    mass = torch.special.ndtr(above) - torch.special.ndtr(below)
    mass = torch.where(x < -LAST_BIN, torch.special.ndtr(above), mass)
    mass = torch.where(x > LAST_BIN, torch.special.ndtr(-below), mass)
    return -mass.clamp_min(LEAST).log()


@FLOW_LOSSES.register_module()
class HybridLoss(StreamLoss):
    """Mean square of the noise, and the variational bound of the learned variance
    (arXiv:2102.09672, eq. 16), as DiT is trained.

    The bound sees the predicted noise without gradient, so it trains the variance alone. It
    compares q(x_{i-1} | x_i, x0) with the model's step by a KL divergence for i > 0, and takes the
    discretised Gaussian's likelihood of the data for i = 0; in bits per dimension, that is nats
    averaged over C, h, w and divided by log 2. The terms are "flow", "flow/<stream>" and
    "flow/vlb"; only the image has a variance.

    Args:
        geometry: Sizes of the model.
        flow: A DiscreteFlow.
        weights: {stream: weight} of the mean squares, 1 by default.
        vlb_weight: lambda.

    Raises:
        ConfigError: Unless the flow is discrete and the backbone predicts a variance.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        flow: Flow,
        weights: Mapping[str, float] | None = None,
        vlb_weight: float = 0.001,
    ) -> None:
        super().__init__(geometry=geometry, flow=flow, weights=weights)
        self.vlb_weight = valid.weight("vlb_weight", vlb_weight)
        if flow.provides != "noise" or not isinstance(flow.path, ScheduledPath):
            raise ConfigError(
                "HybridLoss needs flow=dict(type='DiscreteFlow'); "
                f"this {type(flow).__name__} provides a {flow.provides}."
            )
        self.path: ScheduledPath = flow.path
        channels = geometry.latent_channels
        if geometry.out_channels != 2 * channels:
            raise ConfigError(
                "HybridLoss needs a backbone with learn_sigma=True, whose output has "
                f"{2 * channels} channels; this one's has {geometry.out_channels}."
            )

    def forward(self, view: TargetView) -> Losses:
        """Compare the predicted noise with the noise, and bound the likelihood."""
        noised = view.noised
        pred = view.out.pred["image"]
        x0 = noised.data["image"]
        channels = x0.shape[1]
        eps = pred[:, :channels]
        v = pred[:, channels:]
        terms = self.stream_terms({**view.out.pred, "image": eps}, noised.target)
        with full_precision(pred.device):
            x = noised.x["image"].float()
            bits = self.bound(x0.float(), x, noised.t, eps.detach().float(), v.float())
            bound = Term("flow/vlb", bits.mean(), self.vlb_weight * self.path.steps)
        return Losses((*terms, bound))

    def bound(
        self,
        x0: Tensor,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        v: Tensor,
    ) -> Tensor:
        """Return the bound's term of each sample [B], in bits per dimension.

        Args:
            x0: The data [B, C, h, w], as all but t.
            x: The noised data.
            t: Times [B].
            eps: The predicted noise.
            v: The share of the learned variance.
        """
        index = self.path.index(t)
        schedule = self.path.schedule
        mean = schedule.posterior_mean(schedule.data(x, eps, index), x, index)
        log_variance = schedule.log_variance(v, index)
        true = schedule.posterior_mean(x0, x, index)
        kl = gaussian_kl(true, schedule.over("log_small", index, x), mean, log_variance)
        nll = discretised_nll(x0, mean, log_variance)
        nats = torch.where((index == 0)[:, None], nll.flatten(1), kl.flatten(1)).mean(1)
        return nats / math.log(2)
