"""Weights that change over a run: functions of its progress in [0, 1]. A plain number in a config is a constant."""

import math
from collections.abc import Mapping

from ..registry import SCHEDULES, build
from ..registry.contracts import Step


def check_weight(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: must be a number of at least 0, got {value!r}.")
    return float(value)


def check_span(begin: float, until: float) -> None:
    if not 0 <= begin <= until <= 1:
        raise ValueError(f"begin and until: must be 0 <= begin <= until <= 1, got {begin} and {until}.")


@SCHEDULES.register_module()
class Constant:
    """The same weight all through the run."""

    def __init__(self, *, value: float):
        self.value = check_weight("value", value)

    def __call__(self, step: Step) -> float:
        return self.value


class Ramp:
    """Base: `start` up to progress `begin`, `end` from progress `until` on, and `shape` between."""

    def __init__(self, *, start: float, end: float, begin: float = 0.0, until: float = 1.0):
        self.start, self.end = check_weight("start", start), check_weight("end", end)
        check_span(begin, until)
        self.begin, self.until = begin, until

    @staticmethod
    def shape(part: float) -> float:
        return part

    def __call__(self, step: Step) -> float:
        span = self.until - self.begin
        part = (step.progress - self.begin) / span if span else float(step.progress >= self.until)
        return self.start + (self.end - self.start) * self.shape(min(max(part, 0.0), 1.0))


@SCHEDULES.register_module()
class LinearSchedule(Ramp):
    """From `start` to `end` in a straight line between two points of the run's progress."""


@SCHEDULES.register_module()
class CosineSchedule(Ramp):
    """From `start` to `end` along half a cosine between two points of the run's progress."""

    @staticmethod
    def shape(part: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * part)


@SCHEDULES.register_module()
class StepSchedule:
    """`values` {progress: weight}: each weight holds from its progress on; the first must stand at 0."""

    def __init__(self, *, values: Mapping):
        self.values = sorted((float(at), check_weight(f"values[{at}]", value)) for at, value in values.items())
        if not self.values or self.values[0][0] != 0 or self.values[-1][0] > 1:
            raise ValueError(f"values: progress in [0, 1] with one at 0 is expected, got {dict(values)}.")

    def __call__(self, step: Step) -> float:
        return [value for at, value in self.values if at <= step.progress][-1]


@SCHEDULES.register_module()
class EarlyStop:
    """`value` up to progress `until`, then 0 (as HASTE stops its alignment)."""

    def __init__(self, *, value: float, until: float):
        self.value = check_weight("value", value)
        check_span(0.0, until)
        self.until = until

    def __call__(self, step: Step) -> float:
        return self.value if step.progress < self.until else 0.0


@SCHEDULES.register_module()
class DecadeDecay:
    """`value` up to optimiser step `begin`, then a tenth of it for every `decade` steps: value 0.1^((i - begin) / decade)
    (SRA's code; there in whole epochs, of 5004.6 steps of batch 256)."""

    def __init__(self, *, value: float, begin: float, decade: float):
        self.value, self.begin, self.decade = check_weight("value", value), check_weight("begin", begin), decade
        if not decade > 0:
            raise ValueError(f"decade: must be above 0, got {decade!r}.")

    def __call__(self, step: Step) -> float:
        return self.value * 0.1 ** (max(step.iteration - self.begin, 0.0) / self.decade)


def build_weight(weight, where: str = "weight"):
    """A number -> Constant; a dict -> the schedule of its type; a schedule as it is."""
    if isinstance(weight, (int, float)) and not isinstance(weight, bool):
        return Constant(value=check_weight("weight", weight))
    return build(SCHEDULES, weight, where=where)
