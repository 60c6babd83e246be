"""Try the lowest versions that pyproject.toml declares, and record them: `make lowest`.

A new virtual environment gets exactly the lower bound of every dependency; a demo, two other
methods, the samples of one, the linter and some of the tests run in it. If all of them succeed, the
environment's versions are written to docs/lowest_versions.txt; commit that file with the bounds.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "lowest_versions.txt"
NOT_TRIED = ("docs",)  # extras whose bounds are those of one site build, not of users
BOUND = re.compile(r'"([A-Za-z0-9][\w.-]*)>=([\d.]+)"')
EXTRAS = frozenset({"tensorboard", "wandb"})
TINY = (
    "model.backbone.depth=2",
    "model.backbone.hidden_size=32",
    "model.backbone.num_heads=2",
    "train_dataloader.global_batch_size=4",
    "train_cfg.log_interval=1",
    "hooks.samples.steps=2",
    "hooks.samples.rows=2",
    "hooks.samples.columns=2",
)
TESTS = (
    "sit",
    "vision",
    "autoencoder",
    "registry",
    "checkpoint",
    "pipeline_folder",
    "verdict",
    "evaluation_metrics",
)
WANDB_CONFIG = """
_base_ = ["{config}"]
visualizer = dict(vis_backends=[dict(type="WandbVisBackend", init_kwargs=dict(mode="offline"))])
"""


def normal(name: str) -> str:
    """Return the normal form of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without trailing zeros or a local part such as +cpu."""
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def lowest_python(project: str) -> str:
    """Return the lowest Python of a pyproject.toml, such as '3.10'."""
    found = re.search(r'^requires-python = ">=([\d.]+)"', project, re.MULTILINE)
    if found is None:
        raise SystemExit("pyproject.toml: `requires-python` must be a lower bound alone")
    return found.group(1)


def lower_bounds(project: str) -> dict[str, str]:
    """Return {package: lower bound} of a pyproject.toml, extras and build system included."""
    tried = project
    for extra in NOT_TRIED:
        tried = re.sub(rf"^{extra} = \[.*?\]$", "", tried, flags=re.MULTILINE | re.DOTALL)
    return {normal(name): version for name, version in BOUND.findall(tried)}


def recorded(text: str) -> dict[str, str]:
    """Return {package: version} of the recorded file; 'python' is among them."""
    found = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    python = re.search(r"^# Python ([\d.]+)$", text, re.MULTILINE)
    if python is not None:
        found["python"] = python.group(1)
    return {normal(name): version for name, version in found.items()}


def run(*command: str | Path) -> None:
    """Run a command in the checkout, offline but for pip; ends the program if it fails."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = os.pathsep.join([str(Path(words[0]).parent), environment["PATH"]])
    done = subprocess.run(words, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(words)}")


def install(venv: Path, python: str, bounds: dict[str, str]) -> Path:
    """Make the environment; returns its interpreter."""
    run(python, "-m", "venv", "--clear", venv)
    inside = venv / "bin" / "python"
    pins = [f"{name}=={version}" for name, version in bounds.items()]
    run(inside, "-m", "pip", "install", "-q", *pins)
    run(inside, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".")
    run(inside, "-m", "pip", "check")
    return inside


def try_out(python: str | Path, folder: Path, extras: frozenset[str] = EXTRAS) -> None:
    """Run the demo, other methods, samples, the linters and the tests; ends the program on failure.

    Args:
        python: The interpreter.
        folder: An empty folder for the runs.
        extras: Those of `EXTRAS` that the interpreter has.
    """

    def train(config: str | Path, name: str, *more: str) -> None:
        small: list[str | Path] = ["--demo", "--max-iters", "3", "--work-dir", folder / name]
        run(python, "tools/train.py", config, *small, *more, "--cfg-options", *TINY)

    demo = ROOT / "configs" / "ahpa_sit-b_router-lut.py"
    train(demo, "demo")
    events = list((folder / "demo" / "logs").rglob("events.out.tfevents*"))
    if "tensorboard" in extras and not events:
        raise SystemExit("the demo wrote no events of TensorBoard")
    wanted: list[str | Path] = ["--num", "4", "--steps", "2", "--out", folder / "samples.png"]
    run(python, "tools/sample.py", folder / "demo", *wanted)
    train("configs/repa_sit-b.py", "repa")
    train("configs/ahpa_mmdit.py", "text", "--dry-run")
    if "wandb" in extras:
        wandb_config = folder / "wandb.py"
        wandb_config.write_text(WANDB_CONFIG.format(config=demo))
        train(wandb_config, "wandb")
    run(python, "-m", "ruff", "check", "--quiet", "ahpa")
    run(python, "-m", "pytest", "-q", *[f"tests/test_{name}.py" for name in TESTS])


def write_record(python: Path) -> None:
    """Write the environment's versions to docs/lowest_versions.txt."""
    command = [str(python), "-m", "pip", "freeze", "--all", "--exclude", "ahpa"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    version = subprocess.run([str(python), "-V"], check=True, capture_output=True, text=True).stdout
    RECORD.write_text(
        "# The lowest versions that pyproject.toml declares, which tools/lowest_versions.py ran;\n"
        f"# `make lowest` writes this file.\n# {version.strip()}\n{frozen}"
    )
    print(f"wrote {RECORD.relative_to(ROOT)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, help="keep the environment here; about 6 GB")
    parser.add_argument("--python", help="interpreter; by default the lowest of requires-python")
    parser.add_argument(
        "--here", action="store_true", help="run the same commands in this environment instead"
    )
    args = parser.parse_args(arguments)
    project = (ROOT / "pyproject.toml").read_text()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.here:
            present = frozenset(name for name in EXTRAS if importlib.util.find_spec(name))
            try_out(sys.executable, folder, present)
            return
        wanted = args.python or f"python{lowest_python(project)}"
        python = shutil.which(wanted)
        if python is None:
            raise SystemExit(f"{wanted} was not found; give an interpreter with --python")
        inside = install(args.venv or folder / "venv", python, lower_bounds(project))
        try_out(inside, folder)
        write_record(inside)


if __name__ == "__main__":
    main()
