"""What a start finds in its work dir: a run to continue, or an earlier run to keep apart.

Every change since the checkpoint is reported, the data first; what cannot change in the middle of a
run is refused, and a changed data set unless the user accepts it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..registry import UserError
from ..registry.files import CannotWrite, remedy
from . import checkpoint

RUN_FILES = (
    "checkpoints",
    "samples",
    "policy",
    "evaluations",
    "logs",
    "train.log",
    "scalars.json",
    "scalars.json.damaged",
    "bad_steps.json",
    "left_out.jsonl",
    "config.json",
)
FREE = (  # options that change nothing, or whose effect is told otherwise
    "work_dir",
    "launcher",
    "custom_imports",
    "default_scope",
    "demo",
    "method",  # the config's name
    "train_dataloader.num_workers",
    "model.classes",  # names alone, which the data set gives
    "model.type",  # this and the next two occur in checkpoints of the first edition
    "optim_wrapper.type",
    "train_dataloader.dataset.resolution",
)
DATA = "train_dataloader"
OPTIMIZER = "optim_wrapper.optimizer"
LISTED = 10  # names in a message
Changes = Mapping[str, tuple[Any, Any]]  # dotted key -> (old, new)

logger = logging.getLogger("ahpa")


def find_resumable(work_dir: Path) -> Path:
    """Find the newest valid checkpoint of a run that has some; damaged ones are set aside.

    Raises:
        UserError: If none of them can be used.
    """
    folder = work_dir / "checkpoints"
    found = checkpoint.newest(folder)
    if found is None:
        raise UserError(
            f"cannot resume: {folder} holds checkpoints, but none that can be used (train.log says "
            "why). Restore one from a backup, or start from the beginning without --resume: the "
            "files that are there are then moved aside."
        )
    return found


def keep_earlier(work_dir: Path) -> Path | None:
    """Move an earlier run's files to `earlier-N/`, so that a fresh start is not mixed with them.

    Returns:
        The folder, or None if there was no run.

    Raises:
        CannotWrite: If they cannot be moved; those that were moved are back in their place.
    """
    has_checkpoints = checkpoint.any_left(work_dir / "checkpoints")
    if not has_checkpoints and not os.path.lexists(work_dir / "scalars.json"):
        return None
    number = 1
    while os.path.lexists(place := work_dir / f"earlier-{number}"):
        number += 1
    moved = []
    try:
        place.mkdir()
        for name in RUN_FILES:
            if os.path.lexists(work_dir / name):
                os.replace(work_dir / name, place / name)
                moved.append(name)
    except OSError as error:
        for name in moved:
            os.replace(place / name, work_dir / name)
        raise CannotWrite(
            f"the earlier run in {work_dir} cannot be moved to {place.name}: "
            f"{error.strerror or error} ({error.filename}); {remedy(error)} or choose another "
            "--work-dir."
        ) from error
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
    """Return the differences of two configs that a user should know, the data's first."""

    def is_free(key: str) -> bool:
        return any(key == free or key.startswith(f"{free}.") for free in FREE)

    found = {key: pair for key, pair in differences(old, new).items() if not is_free(key)}
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith(DATA)))


def data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words how two fingerprints of `Dataset.fingerprint` differ."""
    found = []
    if old["samples"] != new["samples"]:
        found.append(f"{old['samples']} samples became {new['samples']}")
    before, after = old["classes"] or [], new["classes"] or []
    gone = [name for name in before if name not in after]
    added = [name for name in after if name not in before]
    if gone or added:
        found.append(f"classes that went: {listed(gone)}; that came: {listed(added)}")
    elif before != after:
        found.append(f"the order of the classes: {listed(before)} became {listed(after)}")
    if not found and old["order"] != new["order"]:
        found.append("its samples have other names or another order")
    return found


def listed(names: Sequence[str]) -> str:
    """List names for a message, at most ten."""
    shown = ", ".join(repr(name) for name in names[:LISTED]) or "none"
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def check_data(
    path: Path, old: Mapping[str, Any] | None, new: Mapping[str, Any], *, accept: bool
) -> None:
    """Compare the data set with that of a checkpoint.

    Args:
        path: The checkpoint, for the message.
        old: Its fingerprint of the data set; None in checkpoints of ahpa before 0.2.
        new: That of the data set now.
        accept: Whether the run goes on with a changed data set.

    Raises:
        UserError: If it has changed: labels and order would mean something else.
    """
    found = data_changes(old, new) if old is not None else []
    if not found:
        return
    said = "; ".join(found)
    if not accept:
        raise UserError(
            f"cannot resume from {path}: the data set has changed: {said}. Labels or the order of "
            "the samples would no longer mean what they meant. Restore the data, start a new run "
            "in another --work-dir, or go on all the same with --accept-changed-data."
        )
    logger.warning("the data set has changed, which --accept-changed-data allows: %s.", said)


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
