"""Where a model comes from: the facts of its run that the record of an evaluation holds."""

import os
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__
from ..engine import checkpoint
from ..engine.weights import (
    CONFIG,
    WEIGHTS,
    is_hub_id,
    is_published,
    model_of,
    read_config,
    sha256,
)
from ..evaluation.protocol import UNKNOWN
from ..registry.files import user_path
from ..registry.hub import hub_file
from ..registry.locations import PACKAGE

VERSIONED = ("torch", "numpy", "timm", "diffusers")  # packages that decide figures
GIT_SECONDS = 5


class Trained(NamedTuple):
    """A trained model on the disk or on the Hub.

    Attributes:
        source: What `load_generator` reads: one file rather than a work dir, so that a checkpoint
            which is written meanwhile changes nothing.
        protocol: weights, EMA decay and iteration, for an evaluation's protocol.
        provenance: method, run, training seed, SHA-256 of the file, iteration.
        config: The run's config; holds at least `model`.
        work_dir: The run's folder; None for a published folder or a Hub id.
    """

    source: str
    protocol: dict[str, Any]
    provenance: dict[str, Any]
    config: Mapping[str, Any]
    work_dir: Path | None

    @property
    def name(self) -> str:
        """A name for files: the iteration and the kind of weights."""
        iteration = self.protocol["iteration"]
        number = f"{iteration:09d}" if isinstance(iteration, int) else iteration
        return f"iter_{number}_{self.protocol['weights']}"


def find_trained(source: str, weights: str = "ema") -> Trained:
    """Read where a model comes from; its weights are not loaded.

    Args:
        source: A checkpoint, a run's work dir, a published folder or a Hub id.
        weights: "ema" or "model".

    Raises:
        UserError: If there is no such model, or a file is damaged.
    """
    path = user_path(source, "the run")
    if is_published(path) or is_hub_id(source, path):
        return published(source, path)
    path = checkpoint.file_of(path)
    saved = checkpoint.load(path)
    model = model_of(saved, path)
    meta = saved["meta"]
    config = meta["config"]
    own = path.resolve().parent
    work_dir = own.parent if own.name == "checkpoints" else own
    iteration = meta.get("iteration", UNKNOWN)
    return Trained(
        str(path),
        {
            "weights": weights,
            "ema_decay": model.get("ema", 0.9999) if weights == "ema" else None,
            "iteration": iteration,
        },
        {
            "method": config.get("method") or work_dir.name,
            "run": work_dir.name,
            "training_seed": meta.get("seed", UNKNOWN),
            "checkpoint_sha256": sha256(path),
            "iteration": iteration,
        },
        config,
        work_dir,
    )


def published(source: str, path: Path) -> Trained:
    """Read where a published folder or Hub repository comes from."""
    local = is_published(path)

    def find(name: str) -> Path:
        return path / name if local else hub_file(source, (name,), what="the run", hint="")

    config = read_config(source, find(CONFIG))
    found = config.get("training")
    training: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    weights = config["weights"]
    iteration = config.get("iteration", UNKNOWN)
    decay = config["model"].get("ema", 0.9999) if weights == "ema" else None
    name = path.resolve().name if local else source
    return Trained(
        source,
        {"weights": weights, "ema_decay": decay, "iteration": iteration},
        {
            "method": training.get("method") or name,
            "run": name,
            "training_seed": config.get("seed", UNKNOWN),
            "checkpoint_sha256": sha256(find(WEIGHTS)),
            "iteration": iteration,
        },
        {**training, "model": config["model"]},
        None,
    )


def here(device: torch.device) -> dict[str, Any]:
    """Return the provenance of what is computed now: versions, commit, device and time (UTC)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"versions": versions(), "commit": commit(), "device": name, "time": moment}


def versions() -> dict[str, str]:
    """Return the versions of ahpa and of the packages that decide figures."""
    found = {"ahpa": __version__}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of ahpa's checkout, with "+changes" if files differ from it; None without
    a checkout."""
    folder = PACKAGE.parent
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return f"{head}+changes" if git("status", "--porcelain", "-uno") else head
    except (OSError, subprocess.SubprocessError):
        return None
