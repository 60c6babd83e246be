"""Errors that are the user's to mend: shown as one message without a traceback, and exit code 2 from the tools."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the code is wrong: a path, a file, an environment. The message says what to do."""


class ConfigError(UserError, ValueError):
    """A mistake in a config or an option; the message names the key and the nearest valid ones."""


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """'; did you mean A or B? Valid: ...' for a message about the unknown name `wrong`."""
    names = sorted(str(name) for name in valid)
    close = difflib.get_close_matches(str(wrong), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else "."
    return f"{hint} Valid: {', '.join(names) or '(nothing)'}."
