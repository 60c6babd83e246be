"""Writing files and folders so that they are complete or absent, never half written; reading what
others wrote, within bounds."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError, printable

LARGEST_JSON = 16 << 20  # bytes of a config
DEEPEST_JSON = 64  # dicts and lists inside each other

NO_SPACE = "free some space"
NO_INODES = "remove some files (no inode is left for another file, though bytes may be)"
NOT_ALLOWED = "change the permissions"
IN_THE_WAY = "move aside the file that is in the way"
REMEDIES = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make the file system writable",
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: IN_THE_WAY,
}


class CannotWrite(UserError):
    """A file or folder that cannot be written."""


def remedy(error: OSError) -> str:
    """Return what a person can do about a file that cannot be written, as "free some space"."""
    if error.errno == errno.ENOSPC and error.filename and no_inode_left(Path(error.filename)):
        return NO_INODES
    return REMEDIES.get(error.errno or 0, "look at the disk")


def no_inode_left(path: Path) -> bool:
    """Whether the file system of a path counts its files and has room for no other."""
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    counts = os.statvfs(existing)
    return counts.f_files > 0 and counts.f_favail == 0


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file aside, sync it and rename it, so that `path` is old or complete, never partial.

    Raises:
        CannotWrite: If it cannot be written; older files are intact.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise CannotWrite(
            f"could not write {path}: {error.strerror or error}; {remedy(error)}. Older files "
            "there are intact."
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path; what is written there gets the name `path` at the end.

    For files too large for `write_file`. An older file at `path` is replaced only by a complete
    one; after an exception it is as it was.

    Raises:
        CannotWrite: If it cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(
            f"could not write {path}: {error.strerror or error}; {remedy(error)}."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that gets the name `path` once it is complete.

    Raises:
        UserError: If `path` exists already or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another name, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(path: Path | str, what: str) -> Path:
    """Return a path that a person or a file named, with ~ expanded; it need not exist.

    Args:
        path: The path.
        what: What it belongs to, for messages.

    Raises:
        UserError: If no file can have that name.
    """
    try:
        found = Path(path).expanduser()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return found
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown ~user
        shown = printable(str(path)[:80])
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what}: {shown!r} cannot be the name of a file ({reason}).") from error
    return found


def read_json(path: Path, what: str, *, most: int = LARGEST_JSON) -> Any:
    """Read a JSON file that someone else may have written.

    Args:
        path: The file.
        what: What it is, for messages.
        most: Largest size in bytes.

    Raises:
        UserError: If it is missing or not JSON, larger than `most`, nested more than 64 deep, or
            holds a number that is not finite.
    """
    data = read_bounded(path, what, most=most)
    try:
        found = json.loads(data, parse_constant=_refuse_constant)
        _refuse_deep(found)
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))[:200]
        raise UserError(f"{what}: {path.name} cannot be read ({reason}).") from error
    return found


def read_bounded(path: Path, what: str, *, most: int) -> bytes:
    """Read a small file that someone else may have written; a pipe or a device is not opened.

    Args:
        path: The file.
        what: What it is, for messages.
        most: Largest size in bytes.

    Raises:
        UserError: If it is missing, no regular file, or larger than `most`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"it is larger than {most} bytes")
    except (OSError, ValueError) as error:
        reason = printable(str(error))[:200]
        raise UserError(f"{what}: {path.name} cannot be read ({reason}).") from error
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_deep(value: Any) -> None:
    """Raise ValueError for containers that are nested too deep."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list)):
                inner.extend(item.values() if isinstance(item, dict) else item)
        level = inner
    if level:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
