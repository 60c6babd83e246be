"""What a start finds in its work dir: a run to continue, or an earlier run to keep apart.

A resumed run may differ from its checkpoint in what does not touch the training (hooks, length,
workers). Every other change is reported, and what cannot change in the middle of a run is refused.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..registry import UserError
from . import checkpoint
from .distributed import Processes

RUN_FILES = (
    "checkpoints",
    "samples",
    "policy",
    "logs",
    "train.log",
    "scalars.json",
    "left_out.jsonl",
    "config.json",
)
FREE = (  # options that may change at a resume without a word
    "hooks",
    "checkpoints",
    "train_cfg",
    "visualizer",
    "work_dir",
    "launcher",
    "compile",
    "custom_imports",
    "default_scope",
    "demo",
    "train_dataloader.num_workers",
    "model.classes",  # names alone, which the data set gives
    "model.type",  # this and the next two occur in checkpoints of the first edition
    "optim_wrapper.type",
    "train_dataloader.dataset.resolution",
)
OPTIMIZER = "optim_wrapper.optimizer"
Changes = Mapping[str, tuple[Any, Any]]  # dotted key -> (old, new)

logger = logging.getLogger("ahpa")


def find_resumable(work_dir: Path, processes: Processes) -> Path | None:
    """Find the newest valid checkpoint; the first process sets damaged ones aside."""
    found = checkpoint.newest(work_dir / "checkpoints") if processes.rank == 0 else None
    found = processes.from_first(found)
    if found is None:
        logger.info(
            "--resume: there is no checkpoint in %s; starting from the beginning.",
            work_dir / "checkpoints",
        )
    return found


def keep_earlier(work_dir: Path) -> Path | None:
    """Move an earlier run's files to `earlier-N/`, so that a fresh start is not mixed with them.

    Returns:
        The folder, or None if there was no run.
    """
    has_checkpoints = bool(checkpoint.list_checkpoints(work_dir / "checkpoints"))
    if not has_checkpoints and not (work_dir / "scalars.json").exists():
        return None
    number = 1
    while (place := work_dir / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    for name in RUN_FILES:
        if (work_dir / name).exists():
            os.replace(work_dir / name, place / name)
    return place


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} of two plain configs; an absent option counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys((*old, *new)):
            found |= differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return found
    return {} if old == new else {where: (old, new)}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of two configs that touch the training."""

    def is_free(key: str) -> bool:
        return any(key == free or key.startswith(f"{free}.") for free in FREE)

    return {key: pair for key, pair in differences(old, new).items() if not is_free(key)}


def describe(changed: Changes) -> str:
    """List changes for a message: 'a.b: 1 -> 2; c: None -> 3'."""
    return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())


def cannot_resume(path: Path, changed: Changes, reason: str) -> UserError:
    """Make the error for a checkpoint that this config cannot continue."""
    differ = f"These options differ: {describe(changed)}. " if changed else ""
    return UserError(
        f"cannot resume from {path}: {reason}. {differ}Use the options that the run was started "
        "with, or start a new run in another --work-dir."
    )


def check_resumable(path: Path, changed: Changes, *, scheduled: bool) -> None:
    """Refuse changes that the checkpoint's state would silently override.

    Args:
        path: The checkpoint, for the message.
        changed: Differences of the two configs.
        scheduled: Whether the run has a learning-rate schedule.

    Raises:
        UserError: For a change of the schedule, of the optimiser's type, or of its options under
            a schedule.
    """
    for key, pair in changed.items():
        if key.startswith("param_scheduler"):
            reason = "a schedule cannot change in the middle of a run"
        elif key == f"{OPTIMIZER}.type":
            reason = "the state in it belongs to another optimiser"
        elif key.startswith(OPTIMIZER) and scheduled:
            reason = "the run's schedule continues from the optimiser's original options"
        else:
            continue
        raise cannot_resume(path, {key: pair}, reason)


def apply_changed_options(
    optimizer: torch.optim.Optimizer, fresh: list[dict[str, Any]], changed: Changes
) -> None:
    """Set the changed options of an optimiser whose state was just loaded.

    Args:
        optimizer: The optimiser.
        fresh: Options of its groups before the state was loaded.
        changed: Differences of the two configs.
    """
    prefix = f"{OPTIMIZER}."
    names = {key.removeprefix(prefix).split(".")[0] for key in changed if key.startswith(prefix)}
    for group, options in zip(optimizer.param_groups, fresh, strict=True):
        group.update({name: options[name] for name in names if name in options})
