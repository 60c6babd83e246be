"""`ab2`: a multistep sampler, of second order at one model call a step."""

from collections.abc import Callable

import torch

from ahpa.registry import SAMPLERS
from ahpa.registry.contracts import Path, Prediction, Sampler, Streams
from ahpa.registry.validation import positive_int


@SAMPLERS.register_module(name="ab2")
class AdamsBashforth2(Sampler):
    """The two-step Adams-Bashforth method for a velocity: `steps` model calls, second order.

    On equidistant times with dt = -1 / steps,

        x_{n+1} = x_n + dt (3/2 v_n - 1/2 v_{n-1}),

    and the first step is Euler's. The model is not called at t = 0.
    """

    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate dx = v dt from t = 1 to 0. Raises ConfigError unless steps >= 1."""
        positive_int("steps", steps)
        dt = -1 / steps
        device = next(iter(x.values())).device
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).float().to(device)
        before: Streams | None = None
        for t in times[:-1]:
            now = model(x, t)
            slope = now
            if before is not None:
                slope = {name: 1.5 * now[name] - 0.5 * before[name] for name in now}
            x = {name: x[name] + dt * slope[name] for name in x}
            before = now
        return x
