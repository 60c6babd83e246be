"""Remembers the last steps until the device is read: which were skipped, which are loss spikes, and
of which samples they were made."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .nonfinite import indices_of, names_of, stop_if_hopeless

if TYPE_CHECKING:
    from .trainer import Trainer

SHOWN = 16  # sample ids in a message
REPORTED = 10  # skipped steps that are told one by one when the device is read
HISTORY = 200  # steps whose median gradient norm is the measure of a spike
LEAST = 20  # steps before which there is no such measure
OVERFLOW = " Every loss is finite, but the norm of the gradients is inf: they overflow."
SPIKE = 5.0  # a gradient norm of this many medians is a spike


class Step(NamedTuple):
    """What is remembered of a step; the tensors are on the device.

    Attributes:
        iteration: Number of the step, from 1.
        samples: Indices of this rank's samples, a list for each micro-batch.
        bad: Whether the step was skipped, on all ranks.
        bad_losses: Whether the loss of each of this rank's micro-batches was not finite.
        grad_norm: Norm of the gradient.
        loss: Mean loss of this rank.
    """

    iteration: int
    samples: list[list[int]]
    bad: Tensor
    bad_losses: Tensor
    grad_norm: Tensor
    loss: Tensor


class Share(NamedTuple):
    """One rank's samples in a step: those to name first, and how bad their loss is."""

    guilty: list[str]
    all: list[str]
    loss: float


class StepWatch:
    """Notes every step without waiting for the device, and reports when the device is read.

    Attributes:
        in_row: Skipped steps in a row, up to the last reading.
    """

    def __init__(self) -> None:
        self.in_row = 0
        self._steps: list[Step] = []
        self._norms: deque[float] = deque(maxlen=HISTORY)

    def note(self, trainer: "Trainer", values: Mapping[str, Tensor]) -> None:
        """Remember the step that was just done.

        Args:
            trainer: Whose step it was.
            values: Its logged values, with "loss".
        """
        optimiser = trainer.optimiser
        samples = [indices_of(batch) for batch in trainer.batches]
        self._steps.append(
            Step(
                trainer.iteration,
                samples,
                optimiser.bad,
                optimiser.bad_losses,
                optimiser.grad_norm,
                values["loss"],
            )
        )

    def read(self, trainer: "Trainer") -> None:
        """Report the skipped steps and the spikes since the last call; waits for the device once.

        Every rank must call it at the same step.

        Raises:
            NonFinite: If a weight is not finite, or after `max_bad_steps` skipped steps in a row.
        """
        steps, self._steps = self._steps, []
        table = torch.stack([torch.stack([s.bad, s.grad_norm, s.loss.float()]) for s in steps])
        values = table.tolist()
        self._report_spikes(trainer, steps, values)
        rows = zip(steps, values, strict=True)
        bad = {step.iteration: norm for step, (skipped, norm, _) in rows if skipped}
        if bad:
            self._report_skipped(trainer, steps, bad)
        else:
            self.in_row = 0

    def _report_spikes(
        self, trainer: "Trainer", steps: Sequence[Step], values: Sequence[Sequence[float]]
    ) -> None:
        """Tell which steps have a gradient norm far above the median of those before.

        Args:
            trainer: Whose steps they are.
            steps: The steps.
            values: For each of them: whether it was skipped, the norm, and this rank's loss.
        """
        medians = []
        for skipped, norm, _ in values:
            known = len(self._norms) >= LEAST and not skipped
            medians.append(median(self._norms) if known else math.inf)
            if not skipped:
                self._norms.append(norm)
        spikes = [norm > SPIKE * usual for (_, norm, _), usual in zip(values, medians, strict=True)]
        agreed = trainer.metrics.processes.sum(torch.tensor(spikes, dtype=torch.float64)).tolist()
        for step, (_, norm, loss), usual, spike in zip(steps, values, medians, agreed, strict=True):
            if not spike:
                continue
            names = first_guilty(gather(trainer, step, loss))
            trainer.run.say(
                f"iteration {step.iteration}: loss spike: the gradient norm {norm:.4g} is "
                f"{norm / usual:.3g} times its running median {usual:.4g} (loss {loss:.4g}; "
                f"samples {listed(names)})."
            )
            trainer.run.note_step(step.iteration, "spike", names)

    def _report_skipped(
        self, trainer: "Trainer", steps: Sequence[Step], bad: Mapping[int, float]
    ) -> None:
        """Tell which steps were skipped, and stop if it must be.

        Args:
            trainer: Whose steps they are.
            steps: The steps since the last call.
            bad: {iteration: norm of the gradient} of the skipped ones.
        """
        total = int(trainer.optimiser.bad_total) - len(bad)
        told = 0
        names: list[str] = []
        for step in steps:
            if step.iteration not in bad:
                self.in_row = 0
                continue
            total, told, self.in_row = total + 1, told + 1, self.in_row + 1
            shares = gather(trainer, step, 0.0)
            names = first_guilty(shares)
            trainer.run.note_step(step.iteration, "skipped", names)
            overflows = math.isinf(bad[step.iteration]) and not any(x.guilty for x in shares)
            if told <= REPORTED:
                trainer.run.say(
                    f"iteration {step.iteration}: a loss or gradient is not finite; the step is "
                    f"skipped on all ranks ({self.in_row} in a row, {total} in all; samples "
                    f"{listed(names)}).{OVERFLOW if overflows else ''}"
                )
        if told > REPORTED:
            trainer.run.say(f"{told - REPORTED} more steps were skipped since then.")
        stop_if_hopeless(trainer, in_row=self.in_row, samples=listed(names))


def gather(trainer: "Trainer", step: Step, loss: float) -> list[Share]:
    """Collect the samples of a step from all ranks: every rank must call it."""
    flags = step.bad_losses.tolist()
    guilty = [part for part, flag in zip(step.samples, flags, strict=False) if flag]
    share = Share(names_of(trainer, chain(*guilty)), names_of(trainer, chain(*step.samples)), loss)
    return [Share(*part) for part in trainer.metrics.processes.gather(tuple(share))]


def first_guilty(shares: Sequence[Share]) -> list[str]:
    """Name the samples whose loss was not finite; if there are none, all, the worst rank's first.

    Ranks exchange gradients, so that only a loss tells whose samples were at fault.
    """
    guilty = [name for share in shares for name in share.guilty]
    if guilty:
        return guilty
    ordered = sorted(shares, key=lambda share: -share.loss)
    return [name for share in ordered for name in share.all]


def listed(names: Sequence[str]) -> str:
    """List sample names for a message, at most sixteen."""
    shown = ", ".join(names[:SHOWN])
    rest = len(names) - SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
