"""The discrete diffusion of DDPM and DiT: a table of betas, a path that looks it up, and the noising of a batch.

With alpha_i = 1 - beta_i and abar_i = alpha_0 ... alpha_i, step i of 0 .. steps - 1 noises the data once to
x = sqrt(abar_i) x0 + sqrt(1 - abar_i) eps (DDPM, arXiv:2006.11239, eq. 4; its steps count from 1). A step is the time
t = i / steps, and a time is the step round(t * steps), held in 0 .. steps - 1: t = 1 is the last step, and t = 0 is step
0, which already has a little noise. What is predicted is eps.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, build
from .flow import Noising
from .paths import Path, expand


class Schedule:
    """What follows from betas [T]: one float64 table each, on the CPU; `at` reads them.

    The posterior q(x_{i-1} | x_i, x0) is a Gaussian (DDPM eq. 7): its mean is `from_data` x0 + `from_state` x_i, its
    variance beta_tilde_i. `log_small` is log beta_tilde and `log_large` log beta, the ends of a learned variance (Nichol
    & Dhariwal, arXiv:2102.09672, eq. 15). beta_tilde_0 is 0: its logarithm is replaced by that of step 1, as DDPM's code
    does (by log beta_0 where there is one step only).
    """

    def __init__(self, betas: Tensor):
        one = torch.ones(1, dtype=torch.float64, device="cpu")
        abar = torch.cumprod(1 - betas, 0)
        before = torch.cat([one, abar[:-1]])  # abar_{i-1}, with abar_{-1} = 1: the data
        small = (1 - before) / (1 - abar) * betas
        first = small[1:2] if len(betas) > 1 else betas
        self.tables = dict(
            betas=betas,
            abar=abar,
            before=before,
            alpha=abar.sqrt(),
            sigma=(1 - abar).sqrt(),
            small=small,
            log_small=torch.cat([first, small[1:]]).log(),
            log_large=betas.log(),
            from_data=before.sqrt() * betas / (1 - abar),
            from_state=(1 - betas).sqrt() * (1 - before) / (1 - abar),
        )
        self.steps = len(betas)
        self._moved: dict = {}

    def at(self, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The named table at index (long, [B] or 0-d), on the device of index."""
        key = (name, index.device, dtype)
        if key not in self._moved:
            self._moved[key] = self.tables[name].to(dtype).to(index.device)
        return self._moved[key][index]

    def over(self, name: str, index: Tensor, x: Tensor) -> Tensor:
        """The same in a shape and type that broadcasts over x [B, ...]."""
        return expand(self.at(name, index, x.dtype), x)

    def data(self, x: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), not clipped: latents have no bounds."""
        return (x - self.over("sigma", index, x) * eps) / self.over("alpha", index, x)

    def posterior_mean(self, x0: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """The mean of q(x_{i-1} | x_i, x0), DDPM eq. 7."""
        return self.over("from_data", index, x) * x0 + self.over("from_state", index, x) * x

    def log_variance(self, v: Tensor, index: Tensor) -> Tensor:
        """The learned variance: a line from log beta_tilde at v = -1 to log beta at v = 1 (arXiv:2102.09672, eq. 15)."""
        share = (v + 1) / 2
        return share * self.over("log_large", index, v) + (1 - share) * self.over("log_small", index, v)


@PATHS.register_module()
class DiscretePath(Path):
    """`steps` noise levels from betas on a line (DDPM section 4; DiT's are the defaults); the prediction is eps.

    Time t in [0, 1] is step round(t * steps), held in 0 .. steps - 1. ValueError for betas that are not in
    0 < beta_start <= beta_end < 1.
    """

    predicts = "noise"

    def __init__(self, *, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"DiscretePath: steps must be a whole number of at least 2, got {steps!r}.")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"DiscretePath: 0 < beta_start <= beta_end < 1 is expected, got {beta_start} and {beta_end}."
            )
        self.steps = steps
        self.schedule = Schedule(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu"))

    def index(self, t: Tensor) -> Tensor:
        """t in [0, 1] -> its step, long in 0 .. steps - 1."""
        return (t * self.steps).round().long().clamp(0, self.steps - 1)

    def time(self, index: Tensor) -> Tensor:
        """A step -> its time, float32; `index` gives the same step back."""
        return index.float() / self.steps

    def alpha(self, t):
        return self.schedule.at("alpha", self.index(t), t.dtype)

    def sigma(self, t):
        return self.schedule.at("sigma", self.index(t), t.dtype)

    def d_alpha(self, t):
        raise TypeError("DiscretePath has steps and no derivative: it predicts the noise, and no velocity.")

    def d_sigma(self, t):
        raise TypeError("DiscretePath has steps and no derivative: it predicts the noise, and no velocity.")

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """-> (x_t, eps): the noised data (DDPM eq. 4) and what is to be predicted."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps, eps

    def to_noise(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t = x] is the prediction itself."""
        return v

    def to_data(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x] from the predicted noise."""
        return self.schedule.data(x, v, self.index(t))

    def respaced(self, steps: int) -> tuple[Tensor, Schedule]:
        """-> (`steps` of the path's steps, ascending, long; the schedule of the chain that visits only these).

        They are evenly spaced from the first to the last, rounded (arXiv:2102.09672, section 4; a single one is the
        last), and keep their abar: beta'_i = 1 - abar_{S_i} / abar_{S_{i-1}}.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps: between 1 and the path's {self.steps}, got {steps}.")
        kept = torch.linspace(self.steps - 1, 0, steps, dtype=torch.float64, device="cpu").round().long().flip(0)
        abar = self.schedule.tables["abar"][kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), abar[:-1]])
        return kept, Schedule(1 - abar / before)


@FLOWS.register_module()
class DiscreteFlow(Noising):
    """A discrete path whose steps are drawn uniformly: DDPM's and DiT's training (arXiv:2212.09748); the target is eps.

    path: DiscretePath if not given, a config or a built object. views: as Flow's. `samplers`: those that fit, the default
    first.
    """

    samplers = ("ddpm", "ddim")

    def __init__(self, *, path: Mapping | Any = None, views: int = 1):
        path = build(PATHS, dict(type="DiscretePath") if path is None else path, where="path")
        super().__init__(path=path, views=views)
        if getattr(self.path, "predicts", "velocity") != "noise":
            raise ValueError(f"path: DiscreteFlow needs a DiscretePath, got {type(self.path).__name__}.")

    def times(self, count, generator, device):
        """t = step / steps."""
        return self.path.time(torch.randint(self.path.steps, (count,), generator=generator, device=device))
