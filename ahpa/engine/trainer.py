"""The training loop: one iteration is one optimiser step. It knows nothing of mmengine.

Everything random in a step comes from a generator seeded by (seed, rank, iteration, micro-batch),
and the data order is a function of the seed and the number of samples consumed; so a run that was
killed continues exactly.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..registry import UserError
from ..registry.contracts import Dataset, Progress
from ..registry.seeds import mix_seed
from ..registry.validation import positive_int
from .denoiser import AlignedDenoiser
from .metrics import Metrics
from .optimiser import Optimiser
from .watch import StepWatch

logger = logging.getLogger("ahpa")


@dataclass(frozen=True)
class TrainOptions:
    """How long and how often.

    Attributes:
        max_iters: Optimiser steps of the run.
        log_interval: Steps between two log lines; each waits for the device.
        seed: Seed of data order, noise and dropout.
        global_batch_size: Samples per step over all processes and micro-batches.
    """

    max_iters: int
    log_interval: int = 100
    seed: int = 0
    global_batch_size: int = 256

    def __post_init__(self) -> None:
        positive_int("train_cfg.max_iters", self.max_iters)
        positive_int("train_cfg.log_interval", self.log_interval)

    def log_due(self, done: int) -> bool:
        """Whether a line is due after `done` steps."""
        return done % self.log_interval == 0 or done == self.max_iters


class Run:
    """What happens around the loop: checkpoints, logs, hooks, signals. Here: nothing.

    `AlignmentRunner` does all of it through mmengine; a script of one's own may do less.
    """

    rank = 0

    def before_train(self) -> None:
        """Called once, before the data loader starts."""

    def restore_random_state(self) -> None:
        """Called once the data loader has started, which draws from torch's global generator."""

    def stop_requested(self) -> bool:
        """Whether to stop before the next step; every rank must give the same answer."""
        return False

    def before_step(self, iteration: int) -> None:
        """Called before the step of this number, from 0."""

    def after_step(self, iteration: int, values: Mapping[str, Tensor]) -> None:
        """Called after the step of this number, from 0, with its logged values."""

    def after_train(self) -> None:
        """Called once after the last step, or after a requested stop."""

    def say(self, message: str) -> None:
        """Tell a person something about the run."""

    def note_step(self, iteration: int, kind: str, samples: Sequence[str]) -> None:
        """Keep a record of a bad step: "skipped" or "spike", with the samples of all ranks."""

    def saved(self) -> str:
        """Return where the newest saved state is, for messages; "" if there is none."""
        return ""


class Trainer:
    """Trains a model: `Trainer(...).train()`.

    Args:
        net: The model, wrapped for several processes if there are any.
        model: The model itself; its frozen parts are `model.parts`.
        optimiser: Backward, clipping and step.
        loader: An endless data loader whose position is a function of the samples consumed.
        options: How long and how often.
        metrics: Collects what is logged.
        schedulers: Learning-rate schedulers, stepped once per iteration.
        run: What happens around the loop.

    Attributes:
        iteration: Optimiser steps done.
        consumed: Samples consumed by all processes.
        data_error: Why the batches of the next step cannot be read; None if all is well.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        model: AlignedDenoiser,
        optimiser: Optimiser,
        loader: DataLoader,
        options: TrainOptions,
        metrics: Metrics,
        schedulers: Sequence[Any] = (),
        run: Run | None = None,
    ) -> None:
        self.net = net
        self.model = model
        self.parts = model.parts
        self.optimiser = optimiser
        self.loader = loader
        self.options = options
        self.metrics = metrics
        self.schedulers = list(schedulers)
        self.run = run or Run()
        self.iteration = 0
        self.consumed = 0
        self.watch = StepWatch()
        self.batches: list[Any] = []  # of the last step, to name the cause of a non-finite value
        self.data_error: UserError | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set that is trained on."""
        return cast(Dataset, self.loader.dataset)

    def train(self) -> None:
        """Run from `iteration` to the last step, or until a stop is requested.

        Raises:
            UserError: If the data cannot be read; what was trained until then is saved.
        """
        run, options, optimiser = self.run, self.options, self.optimiser
        run.before_train()
        self.net.train()
        batches = iter(self.loader)
        run.restore_random_state()
        for iteration in self.iterations():
            self.read_batches(batches)
            if run.stop_requested() or self.data_error:
                break
            run.before_step(iteration)
            diagnose = options.log_due(iteration + 1)
            progress = Progress(iteration, options.max_iters, diagnose)
            self.drop_ended(progress)
            for micro, batch in enumerate(self.batches):
                rng = self.rng(iteration, micro)
                with optimiser.forward_context(self.net, last=micro + 1 == optimiser.accumulate):
                    losses = self.net(self.parts.encode(batch, rng), rng, progress)
                optimiser.backward(losses.total / optimiser.accumulate)
                self.metrics.add(losses, optimiser.accumulate)
            optimiser.step()
            self.parts.ema.update(self.model.backbone)
            for scheduler in self.schedulers:
                scheduler.step()
            self.finish_step(iteration)
        run.after_train()
        if self.data_error:
            raise self.data_error

    def drop_ended(self, progress: Progress) -> None:
        """Leave out alignments whose weight is 0 from here on, and say so."""
        for name in self.model.drop_ended(progress):
            logger.info(
                "model.alignments.%s: the weight is 0 from step %d on; it is no longer computed",
                name,
                progress.iteration,
            )

    def read_batches(self, batches: Iterator[Any]) -> None:
        """Read the micro-batches of a step before it begins, so that an error leaves no half step.

        The error is kept: all processes of a job must save together before it is raised.
        """
        try:
            self.batches = [next(batches) for _ in range(self.optimiser.accumulate)]
        except UserError as error:
            self.data_error = error

    def iterations(self) -> tqdm:
        """Iterate over the remaining steps, with a progress bar if a terminal shows it."""
        return tqdm(
            range(self.iteration, self.options.max_iters),
            initial=self.iteration,
            total=self.options.max_iters,
            unit="step",
            leave=False,
            disable=None if self.run.rank == 0 else True,
        )

    def rng(self, iteration: int, micro: int) -> torch.Generator:
        """Return the generator of one micro-batch: the step's only source of randomness."""
        seed = mix_seed(self.options.seed, self.run.rank, iteration, micro)
        return torch.Generator(self.optimiser.device).manual_seed(seed)

    def finish_step(self, iteration: int) -> None:
        """Count the step, look for bad ones, then let the run save, log and call hooks."""
        optimiser = self.optimiser
        values = self.metrics.end_step(grad_norm=optimiser.grad_norm, skipped=optimiser.bad)
        self.iteration = iteration + 1
        self.consumed += self.options.global_batch_size
        self.watch.note(self, values)
        if optimiser.device.type == "cpu" or self.options.log_due(self.iteration):
            self.watch.read(self)
        self.run.after_step(iteration, values)

    def state_dict(self) -> dict[str, int]:
        """Return where the run stands."""
        return {"iteration": self.iteration, "consumed": self.consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.iteration = state["iteration"]
        self.consumed = state["consumed"]
        self.watch.in_row = int(self.optimiser.bad_in_row)
