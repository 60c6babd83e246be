"""Weights that change over a run. A plain number in a config is a `Constant`."""

import math
from collections.abc import Mapping
from typing import Any

from ..registry import SCHEDULES, ConfigError, build
from ..registry.contracts import Progress, Schedule
from ..registry.validation import integer, is_number, number, positive, probability
from ..registry.validation import weight as valid_weight

Weight = float | Mapping[str, Any] | Schedule
"""What a config may give as a weight: a number, the config of a schedule, or a schedule."""


def build_weight(weight: Weight, where: str = "weight") -> Schedule:
    """Build the schedule of a weight.

    Args:
        weight: A number (a constant weight), the config of a schedule, or a schedule.
        where: Place in the config, for messages.

    Raises:
        ConfigError: If the weight is negative or the schedule's options are not valid.
    """
    if is_number(weight):
        return Constant(value=valid_weight(where, weight))
    if isinstance(weight, (Mapping, Schedule)):
        return build(SCHEDULES, weight, where=where)
    raise ConfigError(f"{where}: must be a finite number or a schedule, got {weight!r}.")


@SCHEDULES.register_module()
class Constant(Schedule):
    """The same weight throughout the run.

    Args:
        value: The weight, at least 0.
    """

    def __init__(self, *, value: float) -> None:
        super().__init__()
        self.value = valid_weight("value", value)

    def forward(self, progress: Progress) -> float:
        """Return the weight."""
        return self.value


class Ramp(Schedule):
    """Base: `start` before share `begin` of the run, `end` after share `until`, and a `shape`
    between them.

    Args:
        start: Weight before the ramp.
        end: Weight after the ramp.
        begin: Share of the run at which the ramp begins, in [0, until].
        until: Share of the run at which the ramp ends, in [begin, 1].
    """

    def __init__(self, *, start: float, end: float, begin: float = 0.0, until: float = 1.0) -> None:
        super().__init__()
        self.start = valid_weight("start", start)
        self.end = valid_weight("end", end)
        self.begin = probability("begin", begin)
        self.until = probability("until", until)
        if begin > until:
            raise ConfigError(f"begin: must not be after until, got {begin} and {until}.")

    def shape(self, part: float) -> float:
        """Map the finished part of the ramp, in [0, 1], to the share of the change; linear."""
        return part

    def forward(self, progress: Progress) -> float:
        """Return the weight at the run's current share."""
        span = self.until - self.begin
        if span:
            part = (progress.share - self.begin) / span
        else:
            part = float(progress.share >= self.until)
        change = self.shape(min(max(part, 0.0), 1.0))
        return self.start + (self.end - self.start) * change

    def ended(self, progress: Progress) -> bool:
        """Whether the ramp is over and has led to 0."""
        return self.end == 0 and progress.share >= self.until


@SCHEDULES.register_module()
class LinearSchedule(Ramp):
    """From `start` to `end` in a straight line between two shares of the run; see `Ramp`."""


@SCHEDULES.register_module()
class CosineSchedule(Ramp):
    """From `start` to `end` along half a cosine between two shares of the run; see `Ramp`."""

    def shape(self, part: float) -> float:
        """Return (1 - cos(pi part)) / 2."""
        return 0.5 - 0.5 * math.cos(math.pi * part)


@SCHEDULES.register_module()
class StepSchedule(Schedule):
    """A weight that changes at given points of the run.

    Args:
        values: {share of the run: weight}; each weight applies from its share on. The first share
            must be 0.
    """

    def __init__(self, *, values: Mapping[float, float]) -> None:
        super().__init__()
        steps = [(float(at), valid_weight(f"values[{at}]", w)) for at, w in values.items()]
        self.values = sorted(steps)
        if not steps or self.values[0][0] != 0 or self.values[-1][0] > 1:
            given = dict(values)
            raise ConfigError(
                "values: must be {share of the run: weight}, with shares in [0, 1] of which the "
                f"first is 0; got {given}."
            )

    def forward(self, progress: Progress) -> float:
        """Return the weight at the run's current share."""
        reached = [value for at, value in self.values if at <= progress.share]
        return reached[-1]

    def ended(self, progress: Progress) -> bool:
        """Whether only zeros are left."""
        left = [value for at, value in self.values if at > progress.share]
        return not any([self(progress), *left])


@SCHEDULES.register_module()
class EarlyStop(Schedule):
    """`value` up to a point of the run, then 0 (HASTE stops its alignment after 250,000 steps).

    Exactly one of `until` and `until_step` is needed.

    Args:
        value: The weight before that point.
        until: Share of the run in [0, 1].
        until_step: Number of optimiser steps with the weight.
    """

    def __init__(
        self, *, value: float, until: float | None = None, until_step: int | None = None
    ) -> None:
        super().__init__()
        self.value = valid_weight("value", value)
        if (until is None) == (until_step is None):
            raise ConfigError("EarlyStop needs exactly one of until and until_step.")
        self.until = None if until is None else probability("until", until)
        self.until_step = None if until_step is None else integer("until_step", until_step)

    def forward(self, progress: Progress) -> float:
        """Return the weight of this step."""
        return 0.0 if self.ended(progress) else self.value

    def ended(self, progress: Progress) -> bool:
        """Whether that point is reached."""
        if self.until is not None:
            return progress.share >= self.until
        return progress.iteration >= (self.until_step or 0)


@SCHEDULES.register_module()
class DecadeDecay(Schedule):
    """`value` up to step `begin`, then a tenth of it for every `decade` steps.

    The weight is value * 0.1^((i - begin) / decade) at step i > begin, as in SRA's code (there in
    whole epochs, of 5004.6 steps of batch 256).

    Args:
        value: The weight before the decay.
        begin: Optimiser step at which the decay begins.
        decade: Optimiser steps in which the weight falls to a tenth.
    """

    def __init__(self, *, value: float, begin: float, decade: float) -> None:
        super().__init__()
        self.value = valid_weight("value", value)
        self.begin = number("begin", begin, least=0)
        self.decade = positive("decade", decade)

    def forward(self, progress: Progress) -> float:
        """Return the weight of this step."""
        past = max(progress.iteration - self.begin, 0.0)
        return self.value * 0.1 ** (past / self.decade)
