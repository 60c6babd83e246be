"""Checkpoints that survive kills and damage: one file, written aside, synced, renamed, and carrying its own checksum.

A checkpoint is a torch zip archive. The SHA-256 of everything before the archive's trailing comment stands in that
comment, so that the file is self-contained, still readable by `torch.load(weights_only=True)`, and a flipped bit, a
cut or an empty file is noticed. A directory is rescanned instead of trusting a pointer to the newest file.
"""

import hashlib
import io
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..registry import UserError

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes
END_RECORD = 22  # bytes of a zip's end-of-central-directory record without its comment
NAME = "iter_{:09d}.pth"
PATTERN = re.compile(r"^iter_(\d+)\.pth$")
FORMAT = 1


class DamagedCheckpoint(UserError):
    """A file that is not, or no longer, what was written."""


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` so that `path` is either what it was before or complete: aside, fsync, rename, fsync folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_directory(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(
            f"could not write {path}: {error.strerror or error}. Older files there are intact; free some "
            "space or choose another --work-dir, then go on with --resume."
        ) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` only when it is complete. UserError where something bears it."""
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} is there already; choose another name, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)
        os.replace(aside, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save(state: dict[str, Any], path: Path) -> None:
    """Writes `state` (tensors and plain Python data only) to `path`, atomically and with its checksum."""
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    data = buffer.getbuffer()
    data[-2:] = struct.pack("<H", COMMENT)  # the archive's comment length, zero until now
    digest = hashlib.sha256(data).hexdigest().encode()
    del data
    buffer.seek(0, io.SEEK_END)
    buffer.write(MARK + digest)
    write_file(Path(path), buffer.getbuffer())


def save_imported(model: dict, state: dict[str, Any], path: Path, *, layout: str) -> None:
    """Writes a backbone that was trained elsewhere as a checkpoint of no iteration, with the config of its model."""
    meta = dict(iteration=0, seed=0, config=dict(model=model), imported=dict(layout=layout))
    save(dict(model={f"backbone.{key}": value for key, value in state.items()}, ema=state, meta=meta), path)


def verify(path: Path) -> None:
    """Raises DamagedCheckpoint unless the file is exactly what `save` wrote."""
    size = path.stat().st_size
    if size < END_RECORD + COMMENT:
        raise DamagedCheckpoint(f"{path} holds {size} bytes: it was cut off or never written.")
    digest, left = hashlib.sha256(), size - COMMENT
    with open(path, "rb") as file:
        while left:
            chunk = file.read(min(left, 1 << 22))
            if not chunk:
                raise DamagedCheckpoint(f"{path} became shorter while it was read.")
            digest.update(chunk)
            left -= len(chunk)
        comment = file.read()
    if not comment.startswith(MARK):
        raise DamagedCheckpoint(f"{path} does not end with a checksum: it was cut off, or ahpa did not write it.")
    if comment[len(MARK) :].decode("ascii", "replace") != digest.hexdigest():
        raise DamagedCheckpoint(f"{path} differs from what was written (its SHA-256 does not match).")


def load(path: Path | str, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Verifies and reads a checkpoint, safely (`weights_only=True`: nothing in it is executed).

    Raises UserError for a missing file, DamagedCheckpoint for one that is not as it was written.
    """
    path = Path(path)
    if path.is_dir():
        found = newest(path if list_checkpoints(path) else path / "checkpoints")
        if found is None:
            raise UserError(f"no valid checkpoint (iter_*.pth) lies in {path} or {path / 'checkpoints'}.")
        path = found
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}.")
    verify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for an archive that it will not read
        raise DamagedCheckpoint(f"{path} is refused: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} has the format {found!r}; this version of ahpa reads {FORMAT}.")
    return state


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(iteration, path) of the files that bear a final name, oldest first."""
    if not Path(folder).is_dir():
        return []
    pairs = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := PATTERN.match(path.name))]
    return sorted(pairs)


def newest(folder: Path, *, say=print) -> Path | None:
    """The newest valid checkpoint; damaged ones on the way are renamed to `*.damaged` and told of. None if none."""
    for _, path in reversed(list_checkpoints(folder)):
        try:
            verify(path)
            return path
        except DamagedCheckpoint as error:
            aside = path.with_name(path.name + ".damaged")
            os.replace(path, aside)
            say(f"{error} It is set aside as {aside.name}; the newest valid checkpoint before it is used.")
    return None


def prune(folder: Path, *, keep: int) -> None:
    """Deletes all but the `keep` newest, and what killed writers left behind. Call it after a successful save."""
    for _, path in list_checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in Path(folder).glob(".iter_*.tmp"):
        if not path.name.endswith(f".{os.getpid()}.tmp"):
            path.unlink(missing_ok=True)
