"""Continuous interpolants between data (t = 0) and noise (t = 1), predicted by their velocity."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ..registry import PATHS
from ..registry.contracts import Path


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Append dimensions to a time so that it broadcasts over x [B, ...].

    Args:
        t: A 0-d time, [B], or a tensor with as many dimensions as x.
        x: The tensor to broadcast over.
    """
    if t.ndim == 0:
        return t
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


class Interpolant(Path):
    """A path x_t = alpha(t) x0 + sigma(t) eps with velocity v = alpha'(t) x0 + sigma'(t) eps.

    This is SiT's stochastic interpolant (arXiv:2401.08740, section 2). Given x_t and v, both ends
    follow by solving the two equations: with D = alpha sigma' - alpha' sigma,

        eps = (alpha v - alpha' x) / D
        x0 = (sigma' x - sigma v) / D
        score = -eps / sigma
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the weight of the data at time t, shaped as t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the weight of the noise at time t, shaped as t."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the derivative of alpha at time t, shaped as t."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the derivative of sigma at time t, shaped as t."""

    def _coefficients(
        self,
        t: Tensor,
        x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return alpha, sigma, alpha' and sigma' at time t, each broadcasting over x."""
        return (
            expand(self.alpha(t), x),
            expand(self.sigma(t), x),
            expand(self.d_alpha(t), x),
            expand(self.d_sigma(t), x),
        )

    def mix(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix data and noise. Returns (x_t, velocity), both shaped as x0."""
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x0)
        return alpha * x0 + sigma * eps, d_alpha * x0 + d_sigma * eps

    def to_noise(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return E[eps | x_t = x], given the velocity `pred`."""
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x)
        return (alpha * pred - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma)

    def to_data(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return E[x0 | x_t = x], given the velocity `pred`."""
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x)
        return (d_sigma * x - sigma * pred) / (alpha * d_sigma - d_alpha * sigma)

    def score(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return grad log p_t(x), given the velocity `pred`; t must be above 0."""
        return -self.to_noise(x, pred, t) / expand(self.sigma(t), x)

    def velocity_from_data(
        self,
        x: Tensor,
        x0: Tensor,
        t: Tensor,
        least_t: float,
    ) -> Tensor:
        """Return the velocity that belongs to a prediction of the data.

        v = (sigma' x - D x0) / max(sigma(t), sigma(least_t)); for the linear path
        (x - x0) / max(t, least_t).

        Args:
            x: The noised data x_t.
            x0: The predicted data, shaped as x.
            t: Time, 0-d, [B] or broadcasting over x.
            least_t: Time below which the denominator stays constant.
        """
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x)
        floor = float(self.sigma(torch.tensor(least_t, device="cpu")))
        determinant = alpha * d_sigma - d_alpha * sigma
        return (d_sigma * x - determinant * x0) / sigma.clamp_min(floor)

    def velocity_from_noise(
        self,
        x: Tensor,
        eps: Tensor,
        t: Tensor,
        least_t: float,
    ) -> Tensor:
        """Return the velocity that belongs to a prediction of the noise.

        v = (alpha' x + D eps) / max(alpha(t), alpha(1 - least_t)); for the linear path
        (eps - x) / max(1 - t, least_t).

        Args:
            x: The noised data x_t.
            eps: The predicted noise, shaped as x.
            t: Time, 0-d, [B] or broadcasting over x.
            least_t: Distance from t = 1 below which the denominator stays constant.
        """
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x)
        floor = float(self.alpha(torch.tensor(1 - least_t, device="cpu")))
        determinant = alpha * d_sigma - d_alpha * sigma
        return (d_alpha * x + determinant * eps) / alpha.clamp_min(floor)


@PATHS.register_module()
class LinearPath(Interpolant):
    """x_t = (1 - t) x0 + t eps with v = eps - x0: SiT's linear interpolant in REPA's direction of
    time."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return -1, shaped as t."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return 1, shaped as t."""
        return torch.ones_like(t)


@PATHS.register_module()
class CosinePath(Interpolant):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps: SiT's variance-preserving interpolant (GVP)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(pi t / 2)."""
        return torch.cos(t * math.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sin(pi t / 2)."""
        return torch.sin(t * math.pi / 2)

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return -pi/2 sin(pi t / 2)."""
        return -math.pi / 2 * torch.sin(t * math.pi / 2)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return pi/2 cos(pi t / 2)."""
        return math.pi / 2 * torch.cos(t * math.pi / 2)
