"""The run's log: messages for a person (screen and train.log), figures for programs (scalars.json).

scalars.json holds one JSON object a line; all but `time` and `images_per_s` are equal for equal
runs.
"""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..registry.errors import printable
from ..registry.files import CannotWrite, write_file

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # of a terminal or a pipe that is closed
SHOWN = ("constant_cosine", "/evenness", "grad_norm")  # endings of what a log line shows

logger = logging.getLogger("ahpa")


class ScreenHandler(logging.Handler):
    """Writes messages to the current stdout, above a progress bar if there is one.

    A screen that is gone (a closed terminal or pipe) costs one warning in train.log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            if error.errno in GONE:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
                logger.warning("nothing can be shown on the screen (%s); the run goes on.", error)


class LogFileHandler(logging.FileHandler):
    """Appends messages to train.log; what cannot be written costs one warning on the screen.

    What the disk did not take is written with the next message that it takes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=False)
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say so once, whatever is logged meanwhile."""
        if not self._told:
            self._told = True
            logger.warning(
                "%s cannot be written (%s); the run goes on.", self.baseFilename, sys.exc_info()[1]
            )


def start_logging(work_dir: Path | None = None, *, rank: int = 0) -> logging.Logger:
    """Send the messages of the logger "ahpa" to the screen, and to train.log if there is a run.

    Args:
        work_dir: Folder of train.log, which is appended to; None for the screen alone.
        rank: Processes other than the first only show and write warnings.

    Returns:
        The logger, which is also `runner.logger`.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [ScreenHandler()]
    problem = None
    if work_dir is not None and rank == 0:
        try:
            handlers.append(LogFileHandler(Path(work_dir) / "train.log"))
        except OSError as error:
            problem = error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    if problem:
        logger.warning("train.log cannot be written (%s); the run goes on without it.", problem)
    return logger


@contextmanager
def warned(what: str) -> Iterator[None]:
    """Turn a failure to write a picture or a log into a warning: it must not cost the run."""
    try:
        yield
    except (OSError, CannotWrite) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        logger.warning("%s was not written: %s. The run goes on.", what, reason.rstrip("."))


def human_time(seconds: float) -> str:
    """Format a duration as 1:23:45 or 3:45."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def peak_memory() -> float:
    """Return the peak memory in GiB: of the GPU's allocator, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class RunLog:
    """Writes a line for a person and a record for programs every log interval.

    Args:
        work_dir: Folder of scalars.json.
    """

    def __init__(self, work_dir: Path) -> None:
        self.path = Path(work_dir) / "scalars.json"
        self.record: dict[str, Any] | None = None  # of the last log line
        self._pending = b""  # records that are not in the file yet
        self._began = 0.0
        self._began_at = 0

    def start(self, iteration: int) -> None:
        """Keep the records up to `iteration` (none at a fresh start) and start the clock.

        A run that was killed between a checkpoint and its log line gets that line now. Spoilt lines
        are left out, and the file as it was stays as scalars.json.damaged.
        """
        self._began = time.perf_counter()
        self._began_at = iteration
        with warned(str(self.path)):
            kept, last = self._kept(iteration)
            if self.record is not None and last < self.record["iteration"] <= iteration:
                kept += encode(self.record)
            write_file(self.path, kept)

    def _kept(self, iteration: int) -> tuple[bytes, int]:
        """Return the lines up to `iteration` and the iteration of the last of them."""
        kept, last, spoilt = b"", 0, 0
        if not iteration or not self.path.exists():
            return kept, last
        for line in self.path.read_bytes().splitlines(keepends=True):
            at = iteration_of(line)
            if at is None:
                spoilt += line.endswith(b"\n")  # a kill may have cut the last one
            elif last < at <= iteration:
                kept += line
                last = at
        if spoilt:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            logger.warning(
                "%s: %d spoilt lines are left out; the file as it was is now %s.",
                *(self.path, spoilt, aside.name),
            )
        return kept, last

    def make_record(
        self, iteration: int, values: Mapping[str, float], *, lr: float, skipped: int, batch: int
    ) -> dict[str, Any]:
        """Make the record of a log line and restart the clock.

        Args:
            iteration: Optimiser steps done.
            values: Means since the last line.
            lr: Learning rate of the first parameter group.
            skipped: Steps skipped since the run began.
            batch: Samples per step.
        """
        now = time.perf_counter()
        steps = iteration - self._began_at
        self.record = {
            "iteration": iteration,
            "lr": lr,
            **values,
            "skipped_steps": skipped,
            "images_per_s": steps * batch / max(now - self._began, 1e-9),
            "time": time.time(),
        }
        self._began = now
        self._began_at = iteration
        return self.record

    def write(self) -> None:
        """Append the last record to scalars.json; what the disk refuses is tried again later."""
        if self.record is None:
            return
        self._pending += encode(self.record)
        with warned(str(self.path)):
            append(self.path, self._pending)
            self._pending = b""

    def note_step(self, record: Mapping[str, Any]) -> None:
        """Append the record of a skipped step or a spike to bad_steps.json."""
        path = self.path.with_name("bad_steps.json")
        with warned(str(path)):
            append(path, encode(record))

    def line(self, max_iters: int, batch: int) -> str:
        """Return the last record as a line for a person; scalars.json has the rest."""
        record = self.record or {}
        speed = record["images_per_s"]
        remaining = (max_iters - record["iteration"]) * batch / speed
        shown = "  ".join(
            f"{name} {value:.4g}"
            for name, value in record.items()
            if name == "loss" or name.startswith("loss/") or name.endswith(SHOWN)
        )
        return (
            f"iter {record['iteration']}/{max_iters}  {shown}  {speed:.1f} images/s  "
            f"{peak_memory():.1f} GiB  ETA {human_time(remaining)}"
        )


class LeftOut:
    """Tells of each file that cannot be read once: in the log, and in left_out.jsonl.

    All processes of a job write the same file, and a resumed run goes on with it.

    Args:
        work_dir: Folder of left_out.jsonl.
    """

    def __init__(self, work_dir: Path) -> None:
        self.path = Path(work_dir) / "left_out.jsonl"

    def tell(self, problems: Mapping[str, str]) -> None:
        """Log and write down name -> reason of files, but for those that were told before.

        A file that cannot be written is a warning: the log still has the names.
        """
        try:
            with open(self.path, "a+", encoding="utf-8", errors="replace") as file:
                file.seek(0)
                known = {line.partition(', "reason"')[0] for line in file}
                for name, reason in problems.items():
                    line = json.dumps({"file": name, "reason": reason})
                    if line.partition(', "reason"')[0] not in known:
                        logger.warning("left out: %s (%s)", printable(name), reason)
                        file.write(line + "\n")
        except OSError as error:
            names = ", ".join(printable(name) for name in problems)
            logger.warning("%s cannot be written (%s); left out: %s", self.path, error, names)


def encode(record: Mapping[str, Any]) -> bytes:
    """Encode a record as a line of scalars.json."""
    return json.dumps(record).encode() + b"\n"


def iteration_of(line: bytes) -> int | None:
    """Return the iteration of a line of scalars.json; None for a line that is spoilt."""
    if not line.endswith(b"\n"):
        return None
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return iteration if isinstance(iteration, int) else None


def append(path: Path, data: bytes) -> None:
    """Append to a file, all or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
