"""Dormand and Prince's method of order 5 with steps of its own choice: the solver of the published
SiT's ODE figures (torchdiffeq's "dopri5" with atol 1e-6 and rtol 1e-3).

The coefficients are those of Dormand and Prince (1980); the first step, the error norm and the
choice of the next step are those of Hairer, Norsett and Wanner, "Solving Ordinary Differential
Equations I", section II.4. Must agree with torchdiffeq.
"""

from collections.abc import Callable, Sequence

import torch

from ..registry import SAMPLERS, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Path, Prediction, Sampler, Streams

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # order 5: the next state
)
FOURTH = (  # order 4 by all seven slopes, to estimate the error (Shampine's choice)
    1951 / 21600,
    0.0,
    22642 / 50085,
    451 / 720,
    -12231 / 42400,
    649 / 6300,
    1 / 60,
)
ERROR = tuple(a - b for a, b in zip((*STAGES[-1], 0.0), FOURTH, strict=True))
ORDER = 5
SAFETY = 0.9
LARGEST_FACTOR, LEAST_FACTOR = 10.0, 0.2  # of a step to the next
LEAST_STEP = 1e-7  # about the distance of two float32 numbers below 1


def combine(x: Streams, slopes: Sequence[Streams], weights: Sequence[float], h: float) -> Streams:
    """Return x - h sum_i weights_i slopes_i for every stream: a step back in time."""
    ahead = {}
    for name, state in x.items():
        total = torch.zeros_like(state)
        for slope, weight in zip(slopes, weights, strict=True):
            if weight:
                total = total + weight * slope[name]
        ahead[name] = state - h * total
    return ahead


def rms(x: Streams, scale: Streams) -> float:
    """Return the root mean square of x / scale over all values of all streams."""
    squares = [(x[name] / scale[name]).square().sum() for name in x]
    count = sum(value.numel() for value in x.values())
    return float((torch.stack(squares).sum() / count).sqrt())


@SAMPLERS.register_module(name="dopri5")
class DormandPrinceSampler(Sampler):
    """Dormand-Prince of order 5 with adaptive steps: 2 + 6 model calls a tried step.

    `steps` has no effect: the tolerances choose the steps. One sequence of steps serves the whole
    batch, as in SiT's code, so a sample depends on the others of its batch within the tolerances.
    The last step ends at t = 0 exactly; torchdiffeq steps beyond it and interpolates.

    Args:
        rtol: Relative tolerance of a step, above 0.
        atol: Absolute tolerance of a step, above 0.

    Raises:
        ConfigError: If a tolerance is not a finite number above 0.
    """

    adaptive = True

    def __init__(self, *, rtol: float = 1e-3, atol: float = 1e-6) -> None:
        self.rtol = valid.positive("rtol", rtol)
        self.atol = valid.positive("atol", atol)

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate dx = v dt from t = 1 to 0.

        Raises:
            ConfigError: Unless steps >= 1, or if the tolerances cannot be kept, for example because
                the prediction is not finite.
        """
        valid.integer("steps", steps, least=1)
        device = next(iter(x.values())).device

        def velocity(state: Streams, t: float) -> Streams:
            return model(state, torch.tensor(t, dtype=torch.float32, device=device))

        t = 1.0
        v = velocity(x, t)
        h = self.first_step(velocity, x, v)
        while t > 0:
            h = min(h, t)
            if not h >= LEAST_STEP:
                raise ConfigError(
                    f"dopri5: the tolerances rtol={self.rtol:g} and atol={self.atol:g} cannot be "
                    f"kept at t={t:.4g}; use larger ones, or check that the weights are finite."
                )
            end = t - h
            ahead, slopes = self.step(velocity, x, v, t, h)
            error = self.error(x, ahead, slopes, h)
            if error <= 1:
                t, x, v = end, ahead, slopes[-1]
            h *= self.factor(error)
        return x

    def scale(self, x: Streams, ahead: Streams) -> Streams:
        """Return the error that is tolerated of every value, for a step from x to `ahead`."""
        return {
            name: self.atol + self.rtol * torch.maximum(x[name].abs(), ahead[name].abs())
            for name in x
        }

    def first_step(
        self, velocity: Callable[[Streams, float], Streams], x: Streams, v: Streams
    ) -> float:
        """Choose the first step (Hairer et al., II.4), with one model call."""
        scale = self.scale(x, x)
        size, slope = rms(x, scale), rms(v, scale)
        h = 1e-6 if size < 1e-5 or slope < 1e-5 else 0.01 * size / slope
        ahead = velocity(combine(x, [v], [1.0], h), 1.0 - h)
        bend = rms({name: ahead[name] - v[name] for name in v}, scale) / h
        if slope <= 1e-15 and bend <= 1e-15:
            return min(100 * h, max(1e-6, h * 1e-3))
        return min(100 * h, (0.01 / max(slope, bend)) ** (1 / ORDER))

    @staticmethod
    def step(
        velocity: Callable[[Streams, float], Streams], x: Streams, v: Streams, t: float, h: float
    ) -> tuple[Streams, list[Streams]]:
        """Try a step from t to t - h with six model calls.

        Returns:
            The next state, and the seven slopes; the last of them is the next state's.
        """
        slopes = [v]
        for node, weights in zip(NODES, STAGES, strict=True):
            ahead = combine(x, slopes, weights, h)
            slopes.append(velocity(ahead, t - h if node == 1 else t - node * h))
        return ahead, slopes

    def error(self, x: Streams, ahead: Streams, slopes: Sequence[Streams], h: float) -> float:
        """Return the step's estimated error relative to what is tolerated; at most 1 is kept."""
        nothing = {name: torch.zeros_like(state) for name, state in x.items()}
        return rms(combine(nothing, slopes, ERROR, h), self.scale(x, ahead))

    @staticmethod
    def factor(error: float) -> float:
        """Return by what a step of this error is multiplied for the next try."""
        if error == 0:
            return LARGEST_FACTOR
        if not error < float("inf"):
            return LEAST_FACTOR
        least = 1.0 if error < 1 else LEAST_FACTOR
        return min(LARGEST_FACTOR, max(SAFETY / error ** (1 / ORDER), least))
