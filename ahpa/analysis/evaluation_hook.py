"""Evaluation during training: a small set of samples every N steps, and the best checkpoint."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from ..engine.denoiser import AlignedDenoiser
from ..engine.hooks import ChecksModel
from ..engine.random_state import random_state, set_random_state
from ..engine.runner import StatefulHook
from ..evaluation.metrics import build_metrics
from ..evaluation.protocol import EvaluationResult
from ..evaluation.reference import Reference
from ..registry import HOOKS, ConfigError, UserError
from ..registry.errors import printable
from ..registry.validation import choice, integer, positive_int
from ..sampling.generator import Generator
from .evaluate import TrainingReference, check_reference, evaluate
from .protocols import SamplingProtocol, sampling_record
from .sample_set import Drawing

KINDS = ("ema", "model")
BEST = "best"  # checkpoints/best.pth


@HOOKS.register_module()
class Evaluation(StatefulHook, ChecksModel):
    """Draws samples every N steps, logs their figures, and keeps the best checkpoint.

    Figures stand in the log as "eval/ema/fd:tiny-vit" or "eval/model/...", and each evaluation is
    written to `<work_dir>/evaluations` with its protocol. The checkpoint with the best figure is
    kept as `checkpoints/best.pth`, which is never deleted. Samples are always of the same noise and
    classes, and nothing random of the training is touched. An evaluation that fails (no weights, no
    space) is a warning.

    Args:
        interval: Iterations between two evaluations, a multiple of the log's interval; there is one
            after the last iteration too.
        metrics: Names of metrics, such as "mind", "fd:dinov2-l".
        count: Number of samples.
        weights: "ema" for the averaged weights, "model" for the trained ones, or both.
        best: Figure that decides which checkpoint is the best, of the first of `weights`; None for
            the first figure.
        reference: ADM's .npz or a folder of pictures; None for the training data.
        reference_count: Most images of the training data that are used.
        sampler: Name of a registered sampler; None for the flow's default.
        steps: Sampling steps.
        cfg_scale: Guidance scale; 1 is no guidance.
        cfg_interval: Range of t in which guidance applies.
        cfg_channels: Number of latent channels that are guided, from the first; None for all.
        cls_cfg_scale: Guidance scale of the streams beside the image; None for `cfg_scale`.
        tile: Images of a forward pass.
        uint8: How floats become 8 bits; see `ahpa.evaluation.images.UINT8_RULES`.
        precision: "fp32", "bf16" or "fp16", of the network.
        seed: Seed of the samples.

    Raises:
        ConfigError: If an option is not valid.
    """

    priority = "LOW"

    def __init__(
        self,
        *,
        interval: int = 10_000,
        metrics: Sequence[str] = ("mind",),
        count: int = 5_000,
        weights: Sequence[str] = ("ema",),
        best: str | None = None,
        reference: str | None = None,
        reference_count: int = 5_000,
        sampler: str | None = None,
        steps: int = 50,
        cfg_scale: float = 1.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        cfg_channels: int | None = None,
        cls_cfg_scale: float | None = None,
        tile: int = 50,
        uint8: str = "round",
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.interval = positive_int("interval", interval)
        self.metrics = build_metrics(listed("metrics", metrics))
        self.weights = [choice("weights", kind, KINDS) for kind in listed("weights", weights)]
        self.better = {
            name: up for metric in self.metrics.values() for name, up in metric.figures.items()
        }
        self.best = next(iter(self.better)) if best is None else best
        choice("best", self.best, tuple(self.better))
        self.reference = reference
        self.reference_count = positive_int("reference_count", reference_count)
        self.seed = integer("seed", seed)
        self.protocol = SamplingProtocol(
            count=count,
            sampler=sampler,
            steps=steps,
            cfg_scale=cfg_scale,
            cfg_interval=cfg_interval,
            cfg_channels=cfg_channels,
            cls_cfg_scale=cls_cfg_scale,
            tile=tile,
            uint8=uint8,
            precision=precision,
        )
        self.best_value: float | None = None
        self.best_iteration: int | None = None
        self._opened: Reference | None = None

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far, its name, and the iteration that it was reached at."""
        return {
            "figure": self.best,
            "value": self.best_value,
            "iteration": self.best_iteration,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the best figure of a checkpoint, unless another one decides now."""
        if state.get("figure") == self.best:
            self.best_value = state["value"]
            self.best_iteration = state["iteration"]

    # ---- called by the run ------------------------------------------------------------------

    def check(self, net: AlignedDenoiser, where: str = "Evaluation") -> None:
        """Refuse what would fail at the first evaluation.

        Args:
            net: The model, also one on the meta device.
            where: Place of this hook in the config; begins the message.

        Raises:
            ConfigError: If sampler or guidance do not fit the model.
        """
        protocol = self.protocol
        try:
            generator_of(net, "ema", None).check(
                protocol.sampler, protocol.cfg_channels, protocol.cls_cfg_scale
            )
        except UserError as error:
            raise ConfigError(f"{where}.{error}") from error

    def before_train(self, runner: Runner) -> None:
        """Refuse before the first step what would fail later, and mend the link of the best."""
        self.check(runner.net)
        every = runner.trainer.options.log_interval
        if self.interval % every:
            near = max(every, self.interval // every * every)
            raise ConfigError(
                f"Evaluation.interval: must be a multiple of train_cfg.log_interval ({every}), so "
                f"that figures stand in the log line of their step; got {self.interval}, the "
                f"nearest is {near}."
            )
        if runner.rank == 0 and self.best_iteration == runner.trainer.iteration:
            runner.keep_checkpoint(BEST)  # a kill may have come between the two files

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Evaluate if that is due."""
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            with untouched_random_state():
                for kind in self.weights:
                    self.evaluate(runner, kind)

    def evaluate(self, runner: Runner, kind: str) -> None:
        """Evaluate one kind of weights; a failure is a warning on every process."""
        result, problem = None, None
        try:
            result = self.result(runner, kind)
        except Exception as error:  # of any library below: no evaluation may cost the run
            kind_of = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            problem = kind_of + " ".join(printable(str(error)).split())[:500]
        problems = runner.processes.gather(problem)
        first = next((text for text in problems if text is not None), None)
        if first is not None or result is None:
            if runner.rank == 0:
                runner.logger.warning("evaluation left out: %s The run goes on.", first)
            return
        self.record(runner, kind, result)

    def result(self, runner: Runner, kind: str) -> EvaluationResult:
        """Draw the samples and compute the figures. Raises UserError if that fails."""
        device = runner.trainer.optimiser.device
        reference = self.open_reference(runner, device)
        names = runner.train_dataloader.dataset.classes
        done = runner.iter + 1
        with evaluated(runner.net, kind):
            generator = generator_of(runner.net, kind, names)
            prompts = None
            if generator.conditioner.takes == "prompts":
                prompts = generator.conditioner.all()
            drawing = Drawing(generator, self.protocol, self.seed, prompts)
            return evaluate(
                drawing.batches(runner.processes),
                reference,
                self.metrics,
                protocol={
                    **sampling_record(generator, self.protocol, prompts),
                    "weights": kind,
                    "ema_decay": runner.parts.ema.decay if kind == "ema" else None,
                    "iteration": done,
                },
                provenance={
                    "method": runner.settings.get("method") or Path(runner.work_dir).name,
                    "run": Path(runner.work_dir).name,
                    "training_seed": runner.run_seed,
                    "sampling_seed": self.seed,
                    "checkpoint_sha256": None,
                    "iteration": done,
                },
                device=device,
                batch=self.protocol.tile,
                processes=runner.processes,
            )

    def open_reference(self, runner: Runner, device: torch.device) -> Reference | None:
        """Open the reference once. Raises UserError if it is missing or does not fit."""
        if not any(metric.reference_needs for metric in self.metrics.values()):
            return None
        if self._opened is None:
            if self.reference is None:
                self._opened = TrainingReference(runner.settings, most=self.reference_count)
            else:
                side = runner.net.geometry.resolution
                stored = Path(self.reference).suffix.lower() in (".npz", ".npy")
                self._opened = Reference(self.reference, resolution=None if stored else side)
            check_reference(self._opened, self.metrics)
        if isinstance(self._opened, TrainingReference):
            self._opened.gather(
                self.metrics,
                device=device,
                batch=self.protocol.tile,
                processes=runner.processes,
            )
        return self._opened

    def record(self, runner: Runner, kind: str, result: EvaluationResult) -> None:
        """Log the figures, write the result, and keep the checkpoint if it is the best."""
        done = runner.iter + 1
        runner.add_figures({f"eval/{kind}/{name}": x for name, x in result.figures.items()})
        shown = "  ".join(f"{name} {value:.5g}" for name, value in result.figures.items())
        if runner.rank == 0:
            runner.logger.info(
                "evaluation of iteration %d (%s): %s  protocol %s",
                done,
                kind,
                shown,
                result.protocol_hash,
            )
            path = Path(runner.work_dir) / "evaluations"
            path = path / f"iter_{done:09d}_{kind}_training_{result.protocol_hash}.json"
            try:
                result.save(path)
            except UserError as error:
                runner.logger.warning("the result was not written: %s", error)
        if kind == self.weights[0]:
            self.compare(runner, result.figures[self.best], done)

    def compare(self, runner: Runner, value: float, done: int) -> None:
        """Ask for the checkpoint of this step to be kept if its figure is the best so far."""
        if not math.isfinite(value):
            return
        before = self.best_value
        sign = 1 if self.better[self.best] else -1
        if before is not None and sign * value <= sign * before:
            return
        self.best_value, self.best_iteration = value, done
        runner.keep_checkpoint(BEST)
        if runner.rank == 0:
            runner.logger.info(
                "best checkpoint so far: iteration %d, %s %.5g%s; kept as checkpoints/%s.pth",
                done,
                self.best,
                value,
                "" if before is None else f" (before: {before:.5g})",
                BEST,
            )


def listed(name: str, values: Any) -> list[str]:
    """Return a list of names, one name as a list too. Raises ConfigError for an empty one."""
    found = [values] if isinstance(values, str) else list(values)
    if not found:
        raise ConfigError(f"{name}: must name at least one.")
    return found


def generator_of(net: AlignedDenoiser, kind: str, classes: Sequence[str] | None) -> Generator:
    """Return a generator over the averaged or the trained weights.

    Args:
        net: The trained model.
        kind: "ema" or "model".
        classes: Names of the data set's classes; None if they have none.
    """
    numbered = net.parts.conditioner.takes == "classes"
    return Generator(
        tokenizer=net.parts.tokenizer,
        backbone=net.parts.ema.backbone if kind == "ema" else net.backbone,
        flow=net.flow,
        conditioner=net.parts.conditioner,
        classes=classes if numbered else None,
    )


@contextmanager
def evaluated(net: AlignedDenoiser, kind: str) -> Iterator[None]:
    """Put the trained backbone into eval mode if it is the one that is sampled."""
    backbone: nn.Module = net.backbone
    before = backbone.training
    if kind == "model":
        backbone.eval()
    try:
        yield
    finally:
        backbone.train(before)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore the global random states at the end."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
