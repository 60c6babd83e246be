"""Tiny real runs of tools/train.py: the demo of a config, made smaller still."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

from ahpa.cli.main import main as ahpa_command
from ahpa.engine import checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.backbone.depth=2",
    "model.backbone.hidden_size=32",
    "model.backbone.num_heads=2",
    "train_dataloader.global_batch_size=4",
    "train_cfg.log_interval=1",
    "checkpoints.interval=3",
    "hooks.samples.steps=2",
    "hooks.samples.rows=2",
    "hooks.samples.columns=2",
    "hooks.samples.interval=1000",
]
VOLATILE = ("time", "images_per_s")


def environment(**extra):
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own, **extra}


def command(work_dir, *arguments, config="configs/ahpa_sit-b.py", iters=9, options=()):
    own = ["--demo", "--work-dir", str(work_dir), "--max-iters", str(iters)]
    more = [*arguments, "--cfg-options", *TINY, *options]
    return [sys.executable, "tools/train.py", config, *own, *more]


def tool(name, *arguments, **extra):
    """Run tools/<name>.py in a process of its own -> the finished process."""
    whole = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    options = dict(capture_output=True, text=True, cwd=ROOT, timeout=300)
    return subprocess.run(whole, env=environment(**extra), **options)


class Done(NamedTuple):
    """What a command did, as a finished process would say it."""

    returncode: int
    stdout: str
    stderr: str


def call(name, *arguments):
    """Call the command `ahpa <name>` in this process, which is faster than a new one."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code = ahpa_command([name, *map(str, arguments)])
        except SystemExit as end:  # argparse
            code = end.code
    return Done(code, out.getvalue(), errors.getvalue())


def sample(*arguments, check=True):
    """Call `ahpa sample` in this process -> what it did."""
    done = call("sample", *arguments)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def train(work_dir, *arguments, check=True, process=False, **options):
    """Run to its end -> what it did; in a process of its own if asked to."""
    whole = command(work_dir, *arguments, **options)
    if process:
        how = dict(capture_output=True, text=True, cwd=ROOT, timeout=300)
        done = subprocess.run(whole, env=environment(), **how)
    else:
        config, *rest = whole[2:]
        done = call("train", ROOT / config, *rest)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def from_a_terminal():
    """Signals as a shell's foreground job has them, however the tests were started."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(work_dir, *arguments, **options):
    """Start a run and return the process at once."""
    whole = command(work_dir, *arguments, **options)
    how = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    how["preexec_fn"] = from_a_terminal
    return subprocess.Popen(whole, cwd=ROOT, env=environment(), **how)


def wait_for_iteration(work_dir, iteration, process, seconds=120):
    """Return when the log has reached `iteration`."""
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
