"""Grids of samples, drawn during training with the averaged weights."""

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import GUIDANCES, HOOKS, SAMPLERS, ConfigError, UserError, build, check
from ..registry.validation import integer, positive_int
from ..sampling.generator import Generator
from .pictures import save_grid


@HOOKS.register_module()
class SampleGrids(Hook):
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

    def before_train(self, runner: Runner) -> None:
        """Refuse before the first step what would fail at the first grid."""
        generator = self.generator(runner)
        generator.sampler(self.options["sampler"])
        channels = self.options["cfg_channels"]
        latent = generator.backbone.streams["image"][0]
        if channels is not None and channels > latent:
            raise ConfigError(
                f"SampleGrids.cfg_channels: the latent has {latent} channels, got {channels}."
            )
        if self.options["cls_cfg_scale"] is not None and len(generator.backbone.streams) == 1:
            raise ConfigError(
                "SampleGrids.cls_cfg_scale: the backbone has no stream beside the image."
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw a grid if one is due."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if due and runner.rank == 0:
            self.draw(runner)

    @staticmethod
    def generator(runner: Runner) -> Generator:
        """Return a generator over the averaged weights."""
        return Generator(
            tokenizer=runner.parts.tokenizer,
            backbone=runner.parts.ema.backbone,
            flow=runner.net.flow,
            conditioner=runner.parts.conditioner,
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
        images = self.generator(runner).sample(
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
