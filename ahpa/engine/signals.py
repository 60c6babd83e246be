"""SIGTERM and SIGUSR1 ask for a checkpoint and a clean end at the next step."""

import signal
from types import FrameType

_asked: list[int] = []


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.append(number)


def install() -> None:
    """Set the handlers; call it early in the main thread, before anything slow begins."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _remember)


def asked() -> str | None:
    """Return the name of the first signal that was received, or None."""
    return signal.Signals(_asked[0]).name if _asked else None


def clear() -> None:
    """Forget the received signals."""
    _asked.clear()
