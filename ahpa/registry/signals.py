"""Signals that ask for a checkpoint and a clean end at the next step: SIGTERM, SIGUSR1, a closed
terminal (SIGHUP) and Ctrl-C (SIGINT). It imports nothing slow, so that it is in place early."""

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
AGAIN = (
    b"\nCtrl-C: a checkpoint is saved after the current step, then the run ends. "
    b"Ctrl-C again ends it at once.\n"
)

_asked: list[int] = []
_before: dict[int, Any] = {}  # signal -> the handler that was there before ours
_process = -1  # that set the handlers; its forked data workers leave signals to it


def _remember(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _process:
        return
    _asked.append(number)
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends even what hangs
        with suppress(OSError):  # there may be no terminal any more
            os.write(2, AGAIN)


def install() -> None:
    """Set the handlers; call it early in the main thread, before anything slow is imported.

    A signal that the process was started to ignore (nohup, a shell's background job) stays ignored.
    """
    global _process
    _process = os.getpid()
    for number in NUMBERS:
        known = signal.getsignal(number)
        if known not in (signal.SIG_IGN, _remember):
            _before.setdefault(number, known)
            signal.signal(number, _remember)


def restore() -> None:
    """Put back the handlers that were there before `install`, and forget the received signals."""
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    clear()


def asked() -> str | None:
    """Return the name of the first signal that was received, or None."""
    return signal.Signals(_asked[0]).name if _asked else None


def clear() -> None:
    """Forget the received signals."""
    _asked.clear()
