"""What a start finds in its work dir: a run to go on with (`--resume`), or an earlier one that must not be mixed in.

A resumed run may differ from its checkpoint in what does not touch the training (hooks, length, workers). Whatever else
was changed is told of; what cannot be changed in the middle of a run is refused, and nothing is changed in silence.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..registry import UserError
from . import checkpoint

RUN_FILES = ("checkpoints", "samples", "policy", "logs", "train.log", "scalars.json", "config.json")
FREE = ("hooks", "train_cfg", "visualizer", "work_dir", "launcher", "compile", "custom_imports", "default_scope",
        "train_dataloader.num_workers")  # fmt: skip
OPTIMIZER = "optim_wrapper.optimizer"


def find_resumable(work_dir: Path, rank: int) -> Path | None:
    """The newest valid checkpoint; the first process sets damaged ones aside, the others wait for it."""
    answer = [checkpoint.newest(work_dir / "checkpoints") if rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(answer, src=0)
    if answer[0] is None and rank == 0:
        print(f"--resume: no checkpoint in {work_dir / 'checkpoints'}; starting from the beginning.", flush=True)
    return answer[0]


def keep_earlier(work_dir: Path) -> Path | None:
    """Moves an earlier run's files to `earlier-N/` in the work dir, so that a fresh start neither overwrites them nor
    is mixed with them -> that folder, or None where no run was."""
    if not checkpoint.list_checkpoints(work_dir / "checkpoints") and not (work_dir / "scalars.json").exists():
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
    """{dotted key: (old, new)} of two plain configs; an option that one of them does not name is None there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = {}
        for key in dict.fromkeys((*old, *new)):
            found |= differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return found
    return {} if old == new else {where: (old, new)}


def changes(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """The differences of two configs that touch the training."""
    return {key: pair for key, pair in differences(old, new).items()
            if not any(key == free or key.startswith(f"{free}.") for free in FREE)}  # fmt: skip


def tell(changed: Mapping[str, tuple]) -> str:
    """'a.b: 1 -> 2; c: None -> 3', for a message."""
    return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())


def refuse(path: Path, changed: Mapping[str, tuple], reason: str) -> UserError:
    """The error of a checkpoint that this config cannot go on from."""
    differ = f"These options differ: {tell(changed)}. " if changed else ""
    return UserError(f"--resume: this config cannot go on from {path}: {reason}. {differ}Use the options that the run was "
                     "started with, or start afresh in another --work-dir.")  # fmt: skip


def check_resumable(path: Path, changed: Mapping[str, tuple], *, scheduled: bool) -> None:
    """Refuses changes that a checkpoint's state would silently overrule. UserError."""
    for key in changed:
        if key.startswith("param_scheduler"):
            raise refuse(path, {key: changed[key]}, "a schedule cannot change in the middle of a run")
        if key == f"{OPTIMIZER}.type":
            raise refuse(path, {key: changed[key]}, "the optimiser's state is of another kind")
        if key.startswith(OPTIMIZER) and scheduled:
            raise refuse(path, {key: changed[key]}, "the schedule of the run goes on from the optimiser's options")


def renew_options(optimizer, fresh: list[dict], changed: Mapping[str, tuple]) -> None:
    """Gives an optimiser, whose state was just loaded, those of its own `fresh` options that the config changed."""
    names = {key.removeprefix(f"{OPTIMIZER}.").split(".")[0] for key in changed if key.startswith(f"{OPTIMIZER}.")}
    for group, options in zip(optimizer.param_groups, fresh, strict=True):
        group.update({name: options[name] for name in names if name in options})
