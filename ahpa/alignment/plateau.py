"""A weight that is released when the alignment stops improving, measured instead of scheduled
(RARE)."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..registry import SCHEDULES, ConfigError, nearest
from ..registry.contracts import Losses, Progress, Schedule
from ..registry.validation import number, positive, probability, weight


def half_cosine(step: float | Tensor, begin: float | Tensor, length: float) -> Tensor:
    """Return phi(s; a) = (1 + cos(pi clip((s - a) / S, 0, 1))) / 2: 1 before step a, 0 after a + S.

    Args:
        step: The current step s.
        begin: The step a at which the ramp begins; inf if it has not begun.
        length: Steps S of the ramp.
    """
    part = torch.as_tensor((step - begin) / length, dtype=torch.float64)
    return (1 + torch.cos(math.pi * part.clamp(0, 1))) / 2


@SCHEDULES.register_module()
class PlateauRelease(Schedule):
    """`value` until the alignment has reached a plateau, then a cosine ramp to 0 (RARE).

    Two exponential moving averages of a criterion's value are kept, a fast and a slow one. The
    plateau is reached at s0, the first step from `warmup` T on with

        (slow - fast) / slow < tolerance

    With S = `ramp` T, where T is the length of the run, the weight at step s is

        value * min(phi(s; s0), phi(s; latest T - S))

    where phi(s; a) falls from 1 at step a to 0 at step a + S along half a cosine. RARE averages
    eta = (1 - cos) / 2; the test is a ratio, so `CosineLoss` (1 - cos) gives the same s0. Both
    averages start at the first value [ours: the paper does not say].

    A step of several micro-batches counts once, with the mean over its micro-batches and all
    ranks; values that are not finite are skipped. The state is kept in buffers, so that a run
    resumes exactly.

    Args:
        value: The weight before the release.
        tolerance: Relative gap between the averages below which the plateau is reached.
        fast_decay: Decay of the fast average per step.
        slow_decay: Decay of the slow average per step, above the fast one's.
        warmup: Share of the run before which no plateau is looked for.
        ramp: Share of the run in which the weight falls to 0.
        latest: Share of the run by which the weight is 0 in any case (RARE: 250K of 400K steps);
            None for no such limit.
        criterion: Name of the criterion whose value is averaged, or "<criterion>/<item>" if it
            returns several; the alignment's first value by default.

    Attributes:
        current: Fast average, slow average, s0 (-1 before the plateau) and number of averaged
            steps, up to and including the last observed step.
        previous: The same before the last observed step.
        batch: Sum and count of the values of the last observed step.
        step: The last observed step; -1 before the first.
    """

    current: Tensor
    previous: Tensor
    batch: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        value: float,
        tolerance: float = 0.02,
        fast_decay: float = 0.999,
        slow_decay: float = 0.99995,
        warmup: float = 1 / 8,
        ramp: float = 1 / 8,
        latest: float | None = 250 / 400,
        criterion: str | None = None,
    ) -> None:
        super().__init__()
        self.value = weight("value", value)
        self.tolerance = number("tolerance", tolerance, least=0)
        self.fast_decay = probability("fast_decay", fast_decay)
        self.slow_decay = probability("slow_decay", slow_decay)
        if not fast_decay < slow_decay < 1:
            raise ConfigError(
                "slow_decay: must be above fast_decay and below 1, "
                f"got {slow_decay} and {fast_decay}."
            )
        self.warmup = probability("warmup", warmup)
        self.ramp = positive("ramp", ramp)
        self.latest = None if latest is None else probability("latest", latest)
        self.criterion = criterion
        start = torch.tensor([0.0, 0.0, -1.0, 0.0], dtype=torch.float64)
        self.register_buffer("current", start)
        self.register_buffer("previous", start.clone())
        self.register_buffer("batch", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(-1))

    def forward(self, progress: Progress) -> Tensor:
        """Return the weight of this step, 0-d float32."""
        total = progress.max_iters
        length = self.ramp * total
        found = self.current[2]
        plateau = torch.where(found < 0, math.inf, found)
        weight = half_cosine(progress.iteration, plateau, length)
        if self.latest is not None:
            limit = half_cosine(progress.iteration, self.latest * total - length, length)
            weight = torch.minimum(weight, limit.to(weight.device))
        return (self.value * weight).float()

    def check_terms(self, names: Sequence[str], where: str) -> None:
        """Refuse a `criterion` that the alignment does not have. Raises ConfigError."""
        if self.criterion is not None and self.criterion not in names:
            raise ConfigError(
                f"{where}.criterion: the alignment has no term {self.criterion!r}"
                f"{nearest(self.criterion, names)}"
            )

    @torch.no_grad()
    def observe(self, losses: Losses, progress: Progress) -> None:
        """Update the averages with the values of a training step; nothing waits for the device."""
        value = self._value(losses)
        finite = value.isfinite()
        is_new = self.step != progress.iteration  # else a further micro-batch of the same step
        self.previous.copy_(torch.where(is_new, self.current, self.previous))
        self.step.fill_(progress.iteration)
        total = torch.where(is_new, 0, self.batch[0]) + torch.where(finite, value, 0)
        count = torch.where(is_new, 0, self.batch[1]) + finite
        self.batch.copy_(torch.stack([total, count]))

        fast, slow, plateau, steps = self.previous.unbind()
        mean = total / count
        is_first = steps == 0
        fast = torch.where(is_first, mean, self.fast_decay * fast + (1 - self.fast_decay) * mean)
        slow = torch.where(is_first, mean, self.slow_decay * slow + (1 - self.slow_decay) * mean)
        is_flat = (slow - fast) / slow < self.tolerance
        is_late_enough = progress.iteration >= self.warmup * progress.max_iters
        is_reached = is_flat & (plateau < 0) & is_late_enough
        plateau = torch.where(is_reached, progress.iteration, plateau)
        updated = torch.stack([fast, slow, plateau, steps + 1])
        self.current.copy_(torch.where(count > 0, updated, self.previous))

    def _value(self, losses: Losses) -> Tensor:
        """Return the observed criterion's value, 0-d float64, as the mean over all ranks."""
        names = [term.name.partition("/")[2] for term in losses.terms]
        self.check_terms(names, "PlateauRelease")
        index = 0 if self.criterion is None else names.index(self.criterion)
        value = losses.terms[index].value.detach().to(self.current, copy=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(value)
            value /= dist.get_world_size()
        return value
