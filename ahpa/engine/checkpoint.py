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
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import UserError
from ..registry.files import write_file

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes
END_RECORD = 22  # bytes of a zip's end-of-central-directory record without its comment
CHUNK = 1 << 22  # bytes read at once
NAME = "iter_{:09d}.pth"
PATTERN = re.compile(r"^iter_(\d+)\.pth$")
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
    model: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, *, layout: str
) -> None:
    """Write a backbone that was trained elsewhere as a checkpoint of iteration 0.

    Args:
        model: The config's model section that builds it.
        state: The backbone's state dict; it becomes both the trained and the averaged weights.
        path: Where to write it.
        layout: Name of the layout that it came from.
    """
    config = {"model": dict(model)}
    meta = {"iteration": 0, "seed": 0, "config": config, "imported": {"layout": layout}}
    weights = {f"backbone.{key}": value for key, value in state.items()}
    save({"model": weights, "ema": dict(state), "meta": meta}, path)


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


def load(path: Path | str, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Verify and read a checkpoint; nothing in it is executed.

    Args:
        path: A checkpoint, its folder, or a work dir: the newest valid checkpoint is taken.
        device: Where the tensors go.

    Raises:
        UserError: If there is no checkpoint, or it has another format.
        DamagedCheckpoint: If the file is not what was written.
    """
    path = Path(path)
    if path.is_dir():
        found = newest(path if list_checkpoints(path) else path / "checkpoints")
        if found is None:
            folders = f"{path} or {path / 'checkpoints'}"
            raise UserError(f"there is no valid checkpoint (iter_*.pth) in {folders}.")
        path = found
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}.")
    verify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for an archive that it does not read
        reason = " ".join(str(error).split())[:300]
        raise DamagedCheckpoint(f"{path} is refused: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        given = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} has the format {given!r}; this version of ahpa reads {FORMAT}.")
    return state


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (iteration, path) of the files with a checkpoint's name, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    matches = ((PATTERN.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest(folder: Path) -> Path | None:
    """Find the newest valid checkpoint; damaged ones on the way are renamed to `*.damaged`."""
    for _, path in reversed(list_checkpoints(folder)):
        try:
            verify(path)
            return path
        except DamagedCheckpoint as error:
            aside = path.with_name(path.name + ".damaged")
            os.replace(path, aside)
            logger.warning(
                "%s It is set aside as %s; the newest valid checkpoint before it is used.",
                error,
                aside.name,
            )
    return None


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what killed writers left behind.

    Call it after a successful save.
    """
    for _, path in list_checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in Path(folder).glob(".iter_*.tmp"):
        if not path.name.endswith(f".{os.getpid()}.tmp"):
            path.unlink(missing_ok=True)
