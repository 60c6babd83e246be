"""Checkpoint files that survive kills and damage: written aside, synced, renamed, checksummed.

A checkpoint is a torch zip archive whose comment holds the SHA-256 of everything before it. The
file is self-contained and readable by `torch.load(weights_only=True)`, and a flipped bit, a cut or
an empty file is noticed. Folders are scanned; no pointer to the newest file is trusted.
"""

import hashlib
import io
import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import UserError
from ..registry.files import CannotWrite, remedy, write_file

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes
END_RECORD = 22  # bytes of a zip's end-of-central-directory record without its comment
CHUNK = 1 << 22  # bytes read at once
NAME = "iter_{:09d}.pth"
PATTERN = re.compile(r"^iter_(\d+)\.pth$")
DAMAGED = ".damaged"  # ending of what was set aside
FORMAT = 1

logger = logging.getLogger("ahpa")


class DamagedCheckpoint(UserError):
    """A file that is not, or no longer, what was written."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, with its checksum.

    Args:
        state: Tensors and plain Python data only.
        path: Where to write it.

    Raises:
        UserError: If it cannot be written; older files are intact.
    """
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    data = buffer.getbuffer()
    data[-2:] = struct.pack("<H", COMMENT)  # length of the archive's comment, zero until now
    digest = hashlib.sha256(data).hexdigest().encode()
    del data
    buffer.seek(0, io.SEEK_END)
    buffer.write(MARK + digest)
    write_file(Path(path), buffer.getbuffer())


def save_imported(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    path: Path,
    *,
    layout: str,
    trained: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
    steps: int = 0,
) -> None:
    """Write a backbone that was trained elsewhere as a checkpoint of iteration 0.

    Args:
        model: The config's model section that builds it.
        state: The backbone's averaged state dict.
        path: Where to write it.
        layout: Name of the layout that it came from.
        trained: The trained state dict; the averaged one by default.
        beside: What the file held beside the backbone, {"ema" or "model": {key: tensor}}.
        steps: Optimiser steps that were done elsewhere.
    """
    config = {"model": dict(model)}
    imported = {"layout": layout, "steps": steps}
    meta = {"iteration": 0, "seed": 0, "config": config, "imported": imported}
    own = state if trained is None else trained
    weights = {f"backbone.{key}": value for key, value in own.items()}
    held = {kind: dict(tensors) for kind, tensors in (beside or {}).items()}
    save({"model": weights, "ema": dict(state), "beside": held, "meta": meta}, path)


def verify(path: Path) -> None:
    """Check a file against its checksum. Raises DamagedCheckpoint if it is not what was written."""
    size = path.stat().st_size
    if size < END_RECORD + COMMENT:
        raise DamagedCheckpoint(f"{path} holds {size} bytes: it was cut off or never written.")
    digest = hashlib.sha256()
    left = size - COMMENT
    with open(path, "rb") as file:
        while left:
            chunk = file.read(min(left, CHUNK))
            if not chunk:
                raise DamagedCheckpoint(f"{path} became shorter while it was read.")
            digest.update(chunk)
            left -= len(chunk)
        comment = file.read()
    if not comment.startswith(MARK):
        raise DamagedCheckpoint(
            f"{path} does not end with a checksum: it was cut off, or ahpa did not write it."
        )
    if comment[len(MARK) :].decode("ascii", "replace") != digest.hexdigest():
        raise DamagedCheckpoint(
            f"{path} differs from what was written (its SHA-256 does not match)."
        )


def file_of(path: Path) -> Path:
    """Return the newest valid checkpoint of a work dir or its folder; another path as it is given.

    Raises:
        UserError: If a folder holds none.
    """
    if not os.path.isdir(path):
        return path
    found = newest(path if list_checkpoints(path) else path / "checkpoints")
    if found is None:
        folders = f"{path} or {path / 'checkpoints'}"
        raise UserError(f"there is no valid checkpoint (iter_*.pth) in {folders}.")
    return found


def load(path: Path | str, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Verify and read a checkpoint; nothing in it is executed.

    Args:
        path: A checkpoint, its folder, or a work dir: the newest valid checkpoint is taken.
        device: Where the tensors go.

    Raises:
        UserError: If there is no checkpoint, it cannot be read, or it has another format.
        DamagedCheckpoint: If the file is not what was written.
    """
    path = file_of(Path(path))
    if not os.path.lexists(path):
        raise UserError(f"there is no checkpoint {path}.")
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a checkpoint: it is no regular file.")
    try:
        verify(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _read(path, device)


def _read(path: Path, device: str | torch.device) -> dict[str, Any]:
    """Read a file whose checksum is right."""
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for an archive that it does not read
        reason = " ".join(str(error).split())[:300]
        raise DamagedCheckpoint(f"{path} is refused: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        given = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} has the format {given!r}; this version of ahpa reads {FORMAT}.")
    return state


def entries(folder: Path) -> list[tuple[int, Path]]:
    """List (iteration, path) of everything with a checkpoint's name, oldest first.

    Raises:
        UserError: If the folder cannot be listed.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror or error}.") from error
    matches = (PATTERN.match(name) for name in names)
    return sorted((int(match[1]), folder / match[0]) for match in matches if match)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (iteration, path) of the files with a checkpoint's name, oldest first.

    Folders, links that lead nowhere, pipes and devices are no files.
    """
    return [(iteration, path) for iteration, path in entries(folder) if os.path.isfile(path)]


def any_left(folder: Path) -> bool:
    """Whether a folder holds anything with a checkpoint's name, even set aside as damaged."""
    return bool(entries(folder)) or any(Path(folder).glob(f"iter_*.pth{DAMAGED}"))


def newest(folder: Path) -> Path | None:
    """Find the newest checkpoint that is whole and whose weights are finite.

    Damaged or non-finite checkpoints on the way are renamed to `*.damaged`; entries that are not
    regular files, or cannot be read, are passed over. Each is logged as a warning.
    """
    for _, path in reversed(entries(folder)):
        if not os.path.isfile(path):
            logger.warning("%s is passed over: it is no regular file.", path)
            continue
        try:
            verify(path)
            check_finite(path, _read(path, "cpu"))
            return path
        except DamagedCheckpoint as error:
            logger.warning(
                "%s %s; the newest valid checkpoint before it is used.", error, _set_aside(path)
            )
        except OSError as error:
            logger.warning("%s is passed over: it cannot be read (%s).", path, error.strerror)
    return None


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint, and return what was done."""
    aside = path.with_name(path.name + DAMAGED)
    try:
        os.replace(path, aside)
    except OSError as error:
        return f"It cannot be renamed ({error.strerror}) and is passed over"
    return f"It is set aside as {aside.name}"


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of the first weight or average that is not finite, or None."""
    for part in ("model", "ema"):
        for name, value in _floats(state.get(part)):
            if not bool(value.isfinite().all()):
                return f"{part}: {name}"
    return None


def _floats(weights: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items() if isinstance(weights, Mapping) else ():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value


def check_finite(path: Path, state: Mapping[str, Any]) -> None:
    """Check the weights of a checkpoint, unless that was done when it was saved.

    Raises:
        DamagedCheckpoint: If they are not finite.
    """
    meta = state.get("meta")
    checked = isinstance(meta, Mapping) and meta.get("finite") is True  # absent before 0.2
    name = None if checked else not_finite(state)
    if name is not None:
        raise DamagedCheckpoint(f"{path} holds weights that are not finite ({name}).")


def check_writable(folder: Path) -> None:
    """Write and remove a small file where checkpoints will be written.

    Raises:
        CannotWrite: If that fails: now, not at the first checkpoint.
    """
    probe = folder / f".iter_probe.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"ahpa\n")
    except OSError as error:
        raise CannotWrite(
            f"no checkpoint can be written to {folder}: {error.strerror or error}; "
            f"{remedy(error)} or choose another --work-dir."
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink()


def link(path: Path, other: Path) -> None:
    """Give a checkpoint a second name: a hard link, or a copy where there are none.

    Args:
        path: The checkpoint.
        other: Its second name; an older file of that name is replaced at once.

    Raises:
        OSError: If it cannot be written.
    """
    aside = other.with_name(f".{other.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        try:
            os.link(path, aside)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, aside)
        os.replace(aside, other)
    finally:
        aside.unlink(missing_ok=True)


def prune(folder: Path, *, keep: int, last: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what killed writers left behind.

    Call it after a successful save. What cannot be deleted stays, with a warning.

    Args:
        folder: The checkpoints' folder.
        keep: How many stay.
        last: Iteration that was just saved. Later ones, which this run passed over, do not count.
    """
    own = [path for iteration, path in list_checkpoints(folder) if iteration <= last]
    old = own[:-keep]
    killed = [
        path
        for path in Path(folder).glob(".iter_*.tmp")
        if not path.name.endswith(f".{os.getpid()}.tmp")
    ]
    for path in [*old, *killed]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s.", path, error.strerror or error)
