"""Grids of samples, drawn during training with the averaged weights."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import GUIDANCES, HOOKS, SAMPLERS, ConfigError, UserError, build, check
from ..registry.validation import integer, positive_int
from ..sampling.generator import Generator
from .denoiser import AlignedDenoiser
from .pictures import save_grid


class ChecksModel(ABC):
    """Mixin of hooks that refuse a model before anything is loaded."""

    @abstractmethod
    def check(self, net: AlignedDenoiser, where: str = "hook") -> None:
        """Refuse what would fail when the hook is due.

        Args:
            net: The model, also one on the meta device.
            where: Place of this hook in the config; begins the message.

        Raises:
            ConfigError: If its options do not fit the model.
        """


@HOOKS.register_module()
class SampleGrids(Hook, ChecksModel):
    """Draws a grid with the averaged weights: one row per class or prompt, always the same noise.

    Args:
        interval: Iterations between two grids; there is one after the last iteration too.
        rows: Number of classes or prompts, spread evenly over all.
        columns: Samples per row.
        sampler: Name of a registered sampler; None for the flow's default.
        steps: Sampling steps.
        cfg_scale: Guidance scale; 1 is no guidance.
        cfg_interval: Range of t in which guidance applies.
        cfg_channels: Number of latent channels that are guided, from the first; None for all.
        cls_cfg_scale: Guidance scale of the streams beside the image; None for `cfg_scale`.
        seed: Seed of the noise.
    """

    priority = "LOW"

    def __init__(
        self,
        *,
        interval: int = 10_000,
        rows: int = 8,
        columns: int = 8,
        sampler: str | None = None,
        steps: int = 50,
        cfg_scale: float = 4.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        cfg_channels: int | None = None,
        cls_cfg_scale: float | None = None,
        seed: int = 0,
    ) -> None:
        self.interval = positive_int("interval", interval)
        self.rows = positive_int("rows", rows)
        self.columns = positive_int("columns", columns)
        self.seed = integer("seed", seed)
        self.options: dict[str, Any] = {
            "sampler": sampler,
            "steps": positive_int("steps", steps),
            "cfg_scale": cfg_scale,
            "cfg_interval": cfg_interval,
            "cfg_channels": cfg_channels,
            "cls_cfg_scale": cls_cfg_scale,
        }
        if not isinstance(sampler, (str, type(None))):
            raise ConfigError(f"sampler: must be the name of a sampler or None, got {sampler!r}.")
        if sampler is not None:
            check(SAMPLERS, {"type": sampler}, where="sampler")
        guidance = {
            "scale": cfg_scale,
            "interval": cfg_interval,
            "channels": cfg_channels,
            "cls_scale": cls_cfg_scale,
        }
        build(GUIDANCES, {"type": "classifier-free", **guidance})

    def guidance_options(self) -> str:
        """Return the options of `ahpa sample` for the guidance and the sampler of these grids."""
        low, high = self.options["cfg_interval"]
        channels = self.options["cfg_channels"]
        only = "" if channels is None else f" --cfg-channels {channels}"
        cls_scale = self.options["cls_cfg_scale"]
        if cls_scale is not None:
            only += f" --cls-cfg-scale {cls_scale}"
        sampler = self.options["sampler"]
        if sampler is not None:
            only += f" --sampler {sampler}"
        return f" --cfg-scale {self.options['cfg_scale']} --cfg-interval {low} {high}{only}"

    def check(self, net: AlignedDenoiser, where: str = "SampleGrids") -> None:
        """Refuse what would fail at the first grid.

        Args:
            net: The model, also one on the meta device.
            where: Place of this hook in the config; begins the message.

        Raises:
            ConfigError: If sampler or guidance do not fit the model.
        """
        try:
            self.generator(net).check(
                self.options["sampler"],
                self.options["cfg_channels"],
                self.options["cls_cfg_scale"],
            )
        except UserError as error:
            raise ConfigError(f"{where}.{error}") from error

    def before_train(self, runner: Runner) -> None:
        """Refuse before the first step what would fail at the first grid."""
        self.check(runner.net)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw a grid if one is due."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if due and runner.rank == 0:
            self.draw(runner)

    @staticmethod
    def generator(net: AlignedDenoiser) -> Generator:
        """Return a generator over the averaged weights."""
        return Generator(
            tokenizer=net.parts.tokenizer,
            backbone=net.parts.ema.backbone,
            flow=net.flow,
            conditioner=net.parts.conditioner,
        )

    @torch.no_grad()
    def draw(self, runner: Runner) -> None:
        """Draw the grid and write it; a grid that cannot be written is a warning."""
        conditioner = runner.parts.conditioner
        known = conditioner.all()
        names = runner.train_dataloader.dataset.classes
        numbered = names is not None and conditioner.takes == "classes"
        if numbered:  # a backbone may have more labels than the data set has classes
            known = known[: len(names)]
        count = min(self.rows, len(known))
        shown = [known[round(i * (len(known) - 1) / max(count - 1, 1))] for i in range(count)]
        images = self.generator(runner.net).sample(
            [condition for condition in shown for _ in range(self.columns)],
            seed=self.seed,
            precision=runner.trainer.optimiser.precision,
            progress=True,
            **self.options,
        )
        done = runner.iter + 1
        path = Path(runner.work_dir) / "samples" / f"iter_{done:09d}.png"
        captions = [str(names[c]) if numbered else str(c) for c in shown]
        try:
            save_grid(images, path, columns=self.columns, captions=captions)
        except UserError as error:
            runner.logger.warning(f"the grid of samples was not written: {error}")
            return
        if done == runner.max_iters:
            runner.logger.info(f"samples (EMA): {path}")
