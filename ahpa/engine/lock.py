"""The lock of a work dir: at most one living process trains in it.

The operating system holds the lock and drops it with the process, however that ends, so a lock
never outlives a run; the file says who holds it.
"""

import atexit
import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..registry import UserError
from ..registry.files import CannotWrite, remedy

NAME = "run.lock"
HELD = (errno.EACCES, errno.EAGAIN)  # of a lock that another process holds

_held: dict[Path, int] = {}  # path -> descriptor; closing any other one would drop the lock


class WorkDirInUse(UserError):
    """Another process trains in the work dir."""


def take(work_dir: Path) -> dict[str, Any] | None:
    """Take the lock; this process keeps it until `release` or its end.

    A process may take it twice: it cannot be in its own way.

    Returns:
        What the lock file said if a process that has died left it there, else None.

    Raises:
        WorkDirInUse: If a living process holds it.
        CannotWrite: If nothing can be written to the work dir.
    """
    path = work_dir.resolve() / NAME
    if path in _held:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
        left = _read(descriptor)
        _write(descriptor)
    except OSError as error:
        raise CannotWrite(
            f"nothing can be written to the work dir {work_dir}: {error.strerror or error} "
            f"({error.filename or path}); {remedy(error)} or choose another --work-dir."
        ) from error
    _held[path] = descriptor
    return left


def refuse_if_held(work_dir: Path) -> None:
    """Look whether another process trains in a work dir, without making or changing anything.

    `take` decides; this is for the time before data and weights are read.

    Raises:
        WorkDirInUse: If a living process holds the lock.
    """
    path = work_dir.resolve() / NAME
    if path in _held:  # closing another descriptor of the file would drop the lock
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # most likely there is none; whatever else it is, `take` says so
        return
    try:
        if _may_live(_read(descriptor)):
            _lock(descriptor, path)
    finally:
        os.close(descriptor)


def keep(work_dir: Path) -> None:
    """Take the lock again if somebody removed its file; nothing happens if this process holds none.

    Call it before a file is written that another run in the folder could have written too.

    Raises:
        WorkDirInUse: If another process has taken the folder meanwhile.
        CannotWrite: If nothing can be written to the work dir.
    """
    path = work_dir.resolve() / NAME
    descriptor = _held.get(path)
    if descriptor is None or _is_at(descriptor, path):
        return
    del _held[path]
    os.close(descriptor)
    take(work_dir)


def release(work_dir: Path) -> None:
    """Give the lock back and remove its file; nothing happens if this process does not hold it."""
    path = work_dir.resolve() / NAME
    descriptor = _held.get(path)
    if descriptor is None or _read(descriptor).get("process") != os.getpid():  # a forked child
        return
    del _held[path]
    if _is_at(descriptor, path):  # and not the file of another process
        with suppress(OSError):
            path.unlink()
    os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:  # it was removed
        return False


@atexit.register
def release_all() -> None:
    """Give back every lock that this process holds, as after a run that failed."""
    for path in list(_held):
        release(path.parent)


def _open_locked(path: Path) -> int:
    """Open the lock file and lock it; again if its holder removed it in between."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _read(descriptor)
        if error.errno not in HELD and not _may_live(holder):
            return  # a file system without locks; the process that is named has ended
        raise WorkDirInUse(in_use(path, holder)) from error


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether a process may still run; one of another host may."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder.get("process", 0)), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, TypeError):
        return True
    return True


def in_use(path: Path, holder: dict[str, Any]) -> str:
    """Make the message for a work dir in which another process trains."""
    who = f"process {holder.get('process', '(unknown)')} on {holder.get('host', '(unknown host)')}"
    since = f" since {holder['since']}" if "since" in holder else ""
    return (
        f"{path.parent} is in use: {who} trains there{since}. Two runs in one folder would destroy "
        "each other: wait for it, stop it (SIGTERM saves a checkpoint, then --resume continues), "
        f"or choose another --work-dir. The lock {path} goes with that process; leave it there."
    )


def _read(descriptor: int) -> dict[str, Any]:
    """Return what a lock file says; nothing if it says nothing sensible."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _write(descriptor: int) -> None:
    said = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(said).encode() + b"\n", 0)
