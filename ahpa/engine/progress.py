"""The run's log: a line for a person, `scalars.json` for programs, TensorBoard or others through mmengine's Visualizer.

Values are means over the iterations since the last line, without those that the guard skipped; they stay on the device
until the line is due. What has been summed up is part of a checkpoint, and `scalars.json` is cut back on resume, so an
interrupted run logs the same.
"""

import json
import time
from itertools import islice
from pathlib import Path

import torch
from mmengine.hooks import Hook

from ..registry import HOOKS
from .checkpoint import write_file

SKIPPED = "skipped"


def human_time(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def peak_memory() -> float:
    """GiB: of the GPU's allocator where there is one, else the process's largest resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@HOOKS.register_module()
class Progress(Hook):
    """Logs every `train_cfg.log_interval` iterations: loss terms, gradient norm, images/s, ETA.

    scalars.json holds one JSON object a line; all but `time` and `images_per_s` are equal for equal runs.
    """

    priority = "VERY_LOW"

    def __init__(self):
        self.rows, self.sums, self.began, self.seen = [], {}, 0.0, 0  # rows: {name: 0-d tensor} of one iteration each

    def path(self, runner) -> Path:
        return Path(runner.work_dir) / "scalars.json"

    def before_train(self, runner) -> None:
        self.began, self.seen = time.perf_counter(), 0
        if runner.rank:
            return
        self._rewind(runner)
        config = json.dumps(runner.plain_config, indent=2).encode()
        write_file(Path(runner.work_dir) / "config.json", config + b"\n")

    def _rewind(self, runner):
        """Drops the lines after the iteration that the run goes on from (all of them at a fresh start)."""
        path, kept = self.path(runner), b""
        if path.exists() and runner.iter:
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or json.loads(line)["iteration"] > runner.iter:
                    break
                kept += line
        write_file(path, kept)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        wrapper = runner.optim_wrapper
        self.rows.append({**outputs["logs"], "grad_norm": wrapper.grad_norm, SKIPPED: wrapper.bad})
        self.seen += runner.global_batch_size
        if runner.iter % runner.train_loop.log_interval == 0 or runner.iter == runner.max_iters:
            self.log(runner)

    def log(self, runner) -> None:
        """Waits for the device, reads the sums, writes the line."""
        self.sum_up()
        values = {name: total / count for name, (total, count) in self.sums.items()}
        now = time.perf_counter()
        speed = self.seen / max(now - self.began, 1e-9)
        self.sums, self.began, self.seen = {}, now, 0
        left = (runner.max_iters - runner.iter) * runner.global_batch_size / speed
        rate = runner.optim_wrapper.optimizer.param_groups[0]["lr"]
        skipped = int(runner.optim_wrapper.bad_total)
        record = dict(iteration=runner.iter, lr=float(rate), **values, skipped_steps=skipped, images_per_s=speed)
        record["time"] = time.time()
        if runner.rank:
            return
        with open(self.path(runner), "a") as file:
            file.write(json.dumps(record) + "\n")
        runner.visualizer.add_scalars({k: v for k, v in record.items() if k != "iteration"}, step=runner.iter)
        lead = [
            name for name in values if "loss" in name or name.endswith(("constant_cosine", "/evenness", "grad_norm"))
        ]
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in lead)  # the rest stands in scalars.json
        runner.say(f"iter {runner.iter}/{runner.max_iters}  {shown}  {speed:.1f} images/s  "
                   f"{peak_memory():.1f} GiB  ETA {human_time(left)}")  # fmt: skip

    def sum_up(self) -> None:
        """Adds the rows to the sums {name: (total, count)}, in their order; one wait for the device."""
        if not self.rows:
            return
        flat = iter(torch.stack([value.float() for row in self.rows for value in row.values()]).tolist())
        for names in self.rows:
            row = dict(zip(names, islice(flat, len(names)), strict=True))
            if row.pop(SKIPPED):
                continue
            for name, value in row.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)
        self.rows = []

    def state_dict(self) -> dict:
        self.sum_up()
        return dict(sums={name: list(pair) for name, pair in self.sums.items()})

    def load_state_dict(self, state: dict) -> None:
        self.sums = {name: tuple(pair) for name, pair in state["sums"].items()}
