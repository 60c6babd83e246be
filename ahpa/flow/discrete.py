"""The discrete diffusion of DDPM (arXiv:2006.11239) and DiT (arXiv:2212.09748): the noise schedule,
the path over its steps, and the noising of a batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, ConfigError, build
from ..registry import validation as valid
from ..registry.contracts import Geometry, Path
from .flows import NoisingFlow
from .paths import expand


class Schedule:
    """Tables that follow from the betas of a chain, kept in float64 on the CPU.

    With alpha_i = 1 - beta_i and abar_i = alpha_0 ... alpha_i, the posterior q(x_{i-1} | x_i, x0)
    is a Gaussian (DDPM, eq. 7): its mean is from_data_i x0 + from_state_i x_i and its variance is
    small_i, the paper's beta_tilde_i.

    Attributes:
        steps: Number of steps T.
        tables: {name: [T]}: `betas`; `abar` and `before`, abar_i and abar_{i-1} (1 for i = 0);
            `alpha` and `sigma`, the weights of data and noise at step i; `small`; `log_small` and
            `log_large`, log beta_tilde and log beta, the ends of a learned variance
            (arXiv:2102.09672, eq. 15); `from_data` and `from_state`. Since beta_tilde_0 is 0, its
            logarithm is replaced by that of step 1, as in DDPM's code (by log beta_0 if T = 1).
    """

    def __init__(self, betas: Tensor) -> None:
        one = torch.ones(1, dtype=torch.float64, device="cpu")
        abar = torch.cumprod(1 - betas, 0)
        before = torch.cat([one, abar[:-1]])
        small = (1 - before) / (1 - abar) * betas
        first = small[1:2] if len(betas) > 1 else betas
        self.tables = {
            "betas": betas,
            "abar": abar,
            "before": before,
            "alpha": abar.sqrt(),
            "sigma": (1 - abar).sqrt(),
            "small": small,
            "log_small": torch.cat([first, small[1:]]).log(),
            "log_large": betas.log(),
            "from_data": before.sqrt() * betas / (1 - abar),
            "from_state": (1 - betas).sqrt() * (1 - before) / (1 - abar),
        }
        self.steps = len(betas)
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def at(
        self,
        name: str,
        index: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Look up a table at steps `index` (int64 of any shape), on the device of `index`."""
        key = (name, index.device, dtype)
        if key not in self._moved:
            self._moved[key] = self.tables[name].to(dtype).to(index.device)
        return self._moved[key][index]

    def over(
        self,
        name: str,
        index: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Look up a table in a shape and dtype that broadcast over x [B, ...]."""
        return expand(self.at(name, index, x.dtype), x)

    def data(
        self,
        x: Tensor,
        eps: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return x0 = (x - sigma eps) / alpha. It is not clipped, as latents have no bounds."""
        return (x - self.over("sigma", index, x) * eps) / self.over("alpha", index, x)

    def posterior_mean(
        self,
        x0: Tensor,
        x: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Return the mean of q(x_{i-1} | x_i, x0) (DDPM, eq. 7)."""
        return self.over("from_data", index, x) * x0 + self.over("from_state", index, x) * x

    def log_variance(self, v: Tensor, index: Tensor) -> Tensor:
        """Return the learned log variance: linear from log beta_tilde at v = -1 to log beta at
        v = 1 (arXiv:2102.09672, eq. 15)."""
        share = (v + 1) / 2
        large = share * self.over("log_large", index, v)
        return large + (1 - share) * self.over("log_small", index, v)


@PATHS.register_module()
class DiscretePath(Path):
    """`steps` noise levels from linearly spaced betas; the prediction is the noise.

    Step i of 0 .. T-1 noises the data once: x = sqrt(abar_i) x0 + sqrt(1 - abar_i) eps (DDPM,
    eq. 4, whose steps count from 1). A step is the time t = i / T, and a time is the nearest step,
    so t = 1 is the last step, and t = 0 is step 0, which has a little noise already.

    Args:
        steps: Number of steps T, at least 2.
        beta_start: The first beta (DDPM section 4; the defaults are also DiT's).
        beta_end: The last beta.

    Raises:
        ConfigError: Unless 0 < beta_start <= beta_end < 1.
    """

    predicts = "noise"

    def __init__(
        self,
        *,
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        self.steps = valid.integer("steps", steps, least=2)
        valid.positive("beta_start", beta_start)
        valid.positive("beta_end", beta_end)
        if not beta_start <= beta_end < 1:
            raise ConfigError(
                "beta_start, beta_end: must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {beta_start} and {beta_end}."
            )
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu")
        self.schedule = Schedule(betas)

    def index(self, t: Tensor) -> Tensor:
        """Return the step nearest to t in [0, 1]: int64 in 0 .. T-1, shaped as t."""
        return (t * self.steps).round().long().clamp(0, self.steps - 1)

    def time(self, index: Tensor) -> Tensor:
        """Return the time of a step, float32; `index` gives the same step back."""
        return index.float() / self.steps

    def alpha(self, t: Tensor) -> Tensor:
        """Return the weight of the data, sqrt(abar), shaped as t."""
        return self.schedule.at("alpha", self.index(t), t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the weight of the noise, sqrt(1 - abar), shaped as t."""
        return self.schedule.at("sigma", self.index(t), t.dtype)

    def mix(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix data and noise. Returns (x_t, eps)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps, eps

    def to_noise(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return the predicted noise itself."""
        return pred

    def to_data(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return E[x0 | x_t = x], given the predicted noise."""
        return self.schedule.data(x, pred, self.index(t))

    def score(
        self,
        x: Tensor,
        pred: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Return -eps / sqrt(1 - abar), given the predicted noise."""
        return -pred / expand(self.sigma(t), x)

    def respaced(self, steps: int) -> tuple[Tensor, Schedule]:
        """Return a shorter chain that visits only some of the steps (arXiv:2102.09672, section 4).

        Args:
            steps: How many; they are evenly spaced from the first to the last and rounded (a
                single one is the last).

        Returns:
            The visited steps S, ascending, int64 [steps]; and the schedule of the chain over them,
            which keeps their abar: beta'_i = 1 - abar_{S_i} / abar_{S_{i-1}}.

        Raises:
            ConfigError: Unless 1 <= steps <= T.
        """
        valid.integer("steps", steps, least=1, most=self.steps)
        last = self.steps - 1
        places = torch.linspace(last, 0, steps, dtype=torch.float64, device="cpu")
        kept = places.round().long().flip(0)
        abar = self.schedule.tables["abar"][kept]
        one = torch.ones(1, dtype=torch.float64, device="cpu")
        before = torch.cat([one, abar[:-1]])
        return kept, Schedule(1 - abar / before)


@FLOWS.register_module()
class DiscreteFlow(NoisingFlow):
    """A discrete path whose steps are drawn uniformly, as DDPM and DiT train; the target is eps.

    Args:
        geometry: Sizes of the model.
        path: A DiscretePath, a config or an object; the default one if not given.
        views: How often each image of a batch is noised.

    Raises:
        ConfigError: If the path is not a DiscretePath.
    """

    path: DiscretePath
    provides = "noise"
    default_sampler = "ddpm"

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Mapping[str, Any] | Path | None = None,
        views: int = 1,
    ) -> None:
        path = dict(type="DiscretePath") if path is None else path
        built = build(PATHS, path, where="path")
        super().__init__(geometry=geometry, path=built, views=views)
        if not isinstance(built, DiscretePath):
            name = type(built).__name__
            raise ConfigError(f"path: DiscreteFlow needs a DiscretePath, got {name}.")

    def times(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times [count] of steps that are uniform over the path."""
        steps = torch.randint(self.path.steps, (count,), generator=rng, device=device)
        return self.path.time(steps)
