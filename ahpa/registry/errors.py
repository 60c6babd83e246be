"""Errors that a user can mend. The commands print them as one message and exit with code 2."""

import difflib
from collections.abc import Iterable

LISTED = 30  # names in a message


class UserError(Exception):
    """Something outside the code is wrong: a path, a file, an environment."""


class ConfigError(UserError, ValueError):
    """A mistake in a config or an option; the message names the key and the nearest valid one."""


class UnreadableSample(RuntimeWarning):
    """A file of a data set cannot be read; another one takes its place."""


def printable(text: str) -> str:
    """Return a text as one line that every terminal and log can show; odd characters escaped."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


def article(noun: str) -> str:
    """Return a noun with its article: "a prior", "an optimizer"."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name.

    Args:
        wrong: The name that was given.
        valid: The names that exist.

    Returns:
        "; did you mean 'a'? Valid: a, b." with up to three suggestions and 30 names.
    """
    names = sorted(str(name) for name in valid)
    close = difflib.get_close_matches(str(wrong), names, n=3, cutoff=0.5)
    suggestions = " or ".join(repr(name) for name in close)
    hint = f"; did you mean {suggestions}?" if close else "."
    listed = ", ".join(names[:LISTED]) or "(nothing)"
    if len(names) > LISTED:
        listed += f", ... ({len(names)} in all)"
    return f"{hint} Valid: {listed}."
