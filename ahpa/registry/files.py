"""Writing files and folders so that they are complete or absent, never half written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file aside, sync it and rename it, so that `path` is old or complete, never partial.

    Raises:
        UserError: If it cannot be written; older files are intact.
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
        raise UserError(
            f"could not write {path}: {error.strerror or error}. Older files there are intact; "
            "free some space or choose another --work-dir, then continue with --resume."
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
