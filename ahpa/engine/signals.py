"""SIGTERM and SIGUSR1 ask for a checkpoint and a clean end at the next step boundary."""

import signal

_asked: list[int] = []


def install() -> None:
    """Sets the handlers; call it early in the main thread, before anything slow begins."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, frame: _asked.append(received))


def asked() -> str | None:
    """The name of the signal that was received, if any."""
    return signal.Signals(_asked[0]).name if _asked else None


def clear() -> None:
    _asked.clear()
