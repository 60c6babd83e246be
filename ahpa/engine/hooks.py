"""What a run leaves behind: checkpoints, and grids of samples drawn with the averaged weights."""

from pathlib import Path

import torch
from mmengine.hooks import Hook

from ..registry import GUIDANCES, HOOKS, SAMPLERS, ConfigError, check
from . import checkpoint
from .inference import Generator
from .pictures import save_grid


def due(runner, interval: int) -> bool:
    """Every `interval` iterations, and at the end."""
    return runner.iter % interval == 0 or runner.iter == runner.max_iters


def check_interval(name: str, interval: int) -> int:
    if not isinstance(interval, int) or interval < 1:
        raise ValueError(f"{name}.interval: must be a whole number above 0, got {interval!r}.")
    return interval


@HOOKS.register_module()
class Checkpoints(Hook):
    """Saves every `interval` iterations, at the end and when a signal asks; keeps the `keep` newest."""

    priority = "LOWEST"
    demo = dict(interval=150)

    def __init__(self, *, interval: int = 10_000, keep: int = 3):
        self.interval = check_interval("Checkpoints", interval)
        if keep < 1:
            raise ValueError(f"Checkpoints.keep: must be at least 1, got {keep}.")
        self.keep, self.saved = keep, None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if due(runner, self.interval):
            self.save(runner)

    def after_train(self, runner) -> None:
        if self.saved != runner.iter:
            self.save(runner)
        last = runner.checkpoint_dir / checkpoint.NAME.format(runner.iter)
        runner.say(f"checkpoint: {last}")
        if not runner.train_loop.stop_training:
            own = f" --config {runner.work_dir}/config.json" if runner.plain_config.get("custom_imports") else ""
            like = "".join(hook.guidance() for hook in runner._hooks if isinstance(hook, SampleGrids))
            runner.say(f"sample from it: python tools/sample.py {last} --num 64{like}{own} "
                       f"--out {runner.work_dir}/samples.png")  # fmt: skip

    def save(self, runner) -> None:
        runner.save()
        self.saved = runner.iter
        if runner.rank == 0:
            checkpoint.prune(runner.checkpoint_dir, keep=self.keep)


@HOOKS.register_module()
class SampleGrids(Hook):
    """Draws a grid with the EMA weights: one row a class or prompt, `columns` samples each, always of the same noise.

    sampler, steps, cfg_scale, cfg_interval, cfg_channels as in tools/sample.py; rows: how many of them are shown.
    """

    priority = "LOW"
    demo = dict(interval=500, rows=10, columns=8, steps=25, cfg_scale=2.5, cfg_interval=(0.0, 1.0))

    def __init__(self, *, interval: int = 10_000, rows: int = 8, columns: int = 8, sampler: str | None = None,
                 steps: int = 50, cfg_scale: float = 4.0, cfg_interval=(0.0, 1.0), cfg_channels: int | None = None,
                 seed: int = 0):  # fmt: skip
        self.interval = check_interval("SampleGrids", interval)
        if sampler is not None:
            check(SAMPLERS, dict(type=sampler), derived=("velocity", "x", "steps", "path", "noise"))
        GUIDANCES.get("classifier-free")(None, None, None, cfg_scale, cfg_interval, cfg_channels)  # raises for mistakes
        self.rows, self.columns = rows, columns
        self.options = dict(sampler=sampler, steps=steps, cfg_scale=cfg_scale, cfg_interval=tuple(cfg_interval),
                            cfg_channels=cfg_channels)  # fmt: skip
        self.seed = seed

    def guidance(self) -> str:
        """The options of tools/sample.py that guide as these grids are guided."""
        low, high = self.options["cfg_interval"]
        channels = self.options["cfg_channels"]
        only = "" if channels is None else f" --cfg-channels {channels}"
        return f" --cfg-scale {self.options['cfg_scale']} --cfg-interval {low} {high}{only}"

    def before_train(self, runner) -> None:
        """What would fail at the first grid is refused before the first step."""
        generator, channels = self.generator(runner), self.options["cfg_channels"]
        generator.sampler(self.options["sampler"])
        latent = generator.backbone.streams["image"][0]
        if channels is not None and channels > latent:
            raise ConfigError(f"SampleGrids.cfg_channels: the latent has {latent} channels, got {channels}.")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if due(runner, self.interval) and runner.rank == 0:
            self.draw(runner)

    @staticmethod
    def generator(runner) -> Generator:
        model = runner.plain_model
        return Generator(tokenizer=model.tokenizer, backbone=model.ema, flow=model.flow, conditioner=model.conditioner)

    @torch.no_grad()
    def draw(self, runner) -> Path:
        model = runner.plain_model
        known = model.conditioner.all()
        rows = min(self.rows, len(known))
        shown = [known[round(i * (len(known) - 1) / max(rows - 1, 1))] for i in range(rows)]  # spread over all
        labels = [label for label in shown for _ in range(self.columns)]
        images = self.generator(runner).sample(
            labels, seed=self.seed, precision=runner.optim_wrapper.precision, **self.options
        )
        path = Path(runner.work_dir) / "samples" / f"iter_{runner.iter:09d}.png"
        names = getattr(runner.train_dataloader.dataset, "classes", None)
        numbered = names and model.conditioner.takes == "classes"
        captions = [str(names[label]) if numbered else str(label) for label in shown]
        save_grid(images, path, columns=self.columns, captions=captions)
        if runner.iter == runner.max_iters:
            runner.say(f"samples (EMA): {path}")
        return path
