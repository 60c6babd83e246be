"""`BentCosinePath`: a variance-preserving interpolant with an exponent."""

import math

from torch import Tensor

from ahpa.registry import PATHS
from ahpa.registry.contracts import Path
from ahpa.registry.validation import positive


def over(t: Tensor, x: Tensor) -> Tensor:
    """Append dimensions to a time, 0-d or [B], so that it broadcasts over x [B, ...]."""
    if t.ndim == 0:
        return t
    missing = x.ndim - t.ndim
    return t.reshape(*t.shape, *[1] * missing)


@PATHS.register_module()
class BentCosinePath(Path):
    """x_t = cos(a) x0 + sin(a) eps with the angle a(t) = pi/2 ((1 + t)^p - 1) / (2^p - 1).

    The variance is preserved for data of variance 1. p = 1 is the cosine interpolant of SiT
    (GVP); p > 1 spends more of the time near the data, p < 1 near the noise. The speed a'(t) is
    never zero, so that x_t and the velocity v = a' (-sin(a) x0 + cos(a) eps) give both ends back:

        eps = sin(a) x_t + cos(a) v / a',   x0 = cos(a) x_t - sin(a) v / a'

    Args:
        exponent: p, above 0.
    """

    predicts = "velocity"

    def __init__(self, *, exponent: float = 2.0) -> None:
        self.exponent = positive("exponent", exponent)
        self.scale = math.pi / 2 / (2**self.exponent - 1)

    def angle(self, t: Tensor) -> Tensor:
        """Return a(t), from 0 at the data to pi/2 at the noise."""
        bent = (1 + t) ** self.exponent - 1
        return self.scale * bent

    def speed(self, t: Tensor) -> Tensor:
        """Return the derivative a'(t)."""
        slope = (1 + t) ** (self.exponent - 1)
        return self.scale * self.exponent * slope

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cos(a), sin(a) and a' at times t, each broadcasting over x."""
        t = over(t, x)
        angle = self.angle(t)
        return angle.cos(), angle.sin(), self.speed(t)

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mix data and noise. Returns (x_t, velocity), both shaped as x0."""
        cos, sin, speed = self.coefficients(t, x0)
        x = cos * x0 + sin * eps
        turned = cos * eps - sin * x0
        return x, speed * turned

    def sigma(self, t: Tensor) -> Tensor:
        """Return sin(a(t)), shaped as t."""
        return self.angle(t).sin()

    def to_noise(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return E[eps | x_t = x], given the velocity."""
        cos, sin, speed = self.coefficients(t, x)
        return sin * x + cos * pred / speed

    def to_data(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t = x], given the velocity."""
        cos, sin, speed = self.coefficients(t, x)
        return cos * x - sin * pred / speed

    def score(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return grad log p_t(x) = -E[eps] / sigma; t must be above 0."""
        sigma = over(self.sigma(t), x)
        return -self.to_noise(x, pred, t) / sigma
