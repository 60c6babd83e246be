"""Writing files and folders so that they are complete or absent, never half written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

NO_SPACE = "free some space"
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
    return REMEDIES.get(error.errno or 0, "look at the disk")


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
            f"could not write {path}: {error.strerror or error}. Older files there are intact; "
            f"{remedy(error)} or choose another --work-dir, then continue with --resume."
        ) from error


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
