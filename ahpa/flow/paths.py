"""Interpolants between data and noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 data and t = 1 noise.

What is predicted is the velocity v = alpha'(t) x0 + sigma'(t) eps (SiT, section 2). From x_t and v both ends follow by
solving these two equations: with D = alpha sigma' - alpha' sigma,

    eps = (alpha v - alpha' x) / D        x0 = (sigma' x - sigma v) / D        score = -eps / sigma

For the linear path D = 1, eps = x + (1 - t) v and x0 = x - t v.
"""

import math

import torch
from torch import Tensor

from ..registry import PATHS


def expand(t: Tensor, x: Tensor) -> Tensor:
    """[B] or a 0-d time -> a shape that broadcasts over x [B, ...]."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


class Path:
    """Base: a path says alpha, sigma and their derivatives; the rest follows. All take t [B] or 0-d.

    `predicts`: what the second value of `mix` is, 'velocity' or 'noise'.
    """

    predicts = "velocity"

    def alpha(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define alpha(t)")

    def sigma(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define sigma(t)")

    def d_alpha(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define d_alpha(t)")

    def d_sigma(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define d_sigma(t)")

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """-> (x_t, its velocity), both shaped as x0. Pure: nothing random happens here."""
        x = expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps
        return x, expand(self.d_alpha(t), x0) * x0 + expand(self.d_sigma(t), x0) * eps

    def to_noise(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t = x] from the velocity."""
        a, s, da, ds = (expand(f(t), x) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma))
        return (a * v - da * x) / (a * ds - da * s)

    def to_data(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x] from the velocity."""
        a, s, da, ds = (expand(f(t), x) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma))
        return (ds * x - s * v) / (a * ds - da * s)

    def score(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x) = -E[eps | x] / sigma; t must be above 0."""
        return -self.to_noise(x, v, t) / expand(self.sigma(t), x)


@PATHS.register_module()
class LinearPath(Path):
    """x_t = (1 - t) x0 + t eps, v = eps - x0 (SiT's linear interpolant in REPA's direction of time)."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def d_alpha(self, t):
        return -torch.ones_like(t)

    def d_sigma(self, t):
        return torch.ones_like(t)


@PATHS.register_module()
class CosinePath(Path):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps: the trigonometric path, which keeps unit variance (SiT's GVP)."""

    def alpha(self, t):
        return torch.cos(t * math.pi / 2)

    def sigma(self, t):
        return torch.sin(t * math.pi / 2)

    def d_alpha(self, t):
        return -math.pi / 2 * torch.sin(t * math.pi / 2)

    def d_sigma(self, t):
        return math.pi / 2 * torch.cos(t * math.pi / 2)
