"""Tiny real runs of tools/train.py: the demo of a config, made smaller still."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from ahpa.engine import checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.backbone.depth=2", "model.backbone.hidden_size=32", "model.backbone.num_heads=2",
    "train_dataloader.global_batch_size=4", "train_cfg.log_interval=1", "hooks.checkpoints.interval=3",
    "hooks.samples.steps=2", "hooks.samples.rows=2", "hooks.samples.columns=2", "hooks.samples.interval=1000",
]  # fmt: skip
VOLATILE = ("time", "images_per_s")


def environment(**extra):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", **extra}  # fmt: skip


def command(work_dir, *arguments, config="configs/ahpa_sit-b.py", iters=9, options=()):
    return [sys.executable, "tools/train.py", config, "--demo", "--work-dir", str(work_dir), "--max-iters", str(iters),
            *arguments, "--cfg-options", *TINY, *options]  # fmt: skip


def train(work_dir, *arguments, check=True, **options):
    """Runs to its end -> the finished process."""
    done = subprocess.run(command(work_dir, *arguments, **options), capture_output=True, text=True, cwd=ROOT,
                          env=environment(), timeout=300)  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def start(work_dir, *arguments, **options):
    """Starts a run and returns the process at once."""
    return subprocess.Popen(command(work_dir, *arguments, **options), cwd=ROOT, env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def wait_for_iteration(work_dir, iteration, process, seconds=120):
    """Returns when the log has reached `iteration`."""
    end = time.time() + seconds
    while time.time() < end:
        if any(record["iteration"] >= iteration for record in scalars(work_dir)):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    raise AssertionError(f"iteration {iteration} was not reached in {seconds} s")


def scalars(work_dir):
    """The complete lines of scalars.json."""
    path = Path(work_dir) / "scalars.json"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def stable(work_dir):
    """The log without what may differ between equal runs."""
    return [{k: v for k, v in record.items() if k not in VOLATILE} for record in scalars(work_dir)]


def final_state(work_dir):
    return checkpoint.load(Path(work_dir) / "checkpoints")


def assert_same_state(a, b, keys=("model", "ema", "optimizer", "data", "rng", "hooks")):
    for key in keys:
        _compare(a[key], b[key], key)


def _compare(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where} differs"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _compare(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, f"{where}[{i}]")
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"
