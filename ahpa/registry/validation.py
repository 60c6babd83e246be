"""Validators of options. Each returns the valid value, or raises a ConfigError that names the
option, what was expected and what was given."""

import math
from collections.abc import Sequence
from typing import Any

from .errors import ConfigError, nearest


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; booleans are not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def integer(name: str, value: Any, *, least: int = 0, most: int | None = None) -> int:
    """Return `value` if it is an integer in [least, most]."""
    if is_integer(value) and value >= least and (most is None or value <= most):
        return value
    if most is not None:
        wanted = f"an integer in {least}..{most}"
    else:
        wanted = {0: "a non-negative integer", 1: "a positive integer"}.get(
            least, f"an integer of at least {least}"
        )
    raise ConfigError(f"{name}: must be {wanted}, got {value!r}.")


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an integer of at least 1."""
    return integer(name, value, least=1)


def number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [least, most]."""
    if is_number(value) and least <= value <= most:
        return float(value)
    bounds = ""
    if least > -math.inf and most < math.inf:
        bounds = f" in [{least:g}, {most:g}]"
    elif least > -math.inf:
        bounds = f" of at least {least:g}"
    elif most < math.inf:
        bounds = f" of at most {most:g}"
    raise ConfigError(f"{name}: must be a finite number{bounds}, got {value!r}.")


def positive(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number above 0."""
    if is_number(value) and value > 0:
        return float(value)
    raise ConfigError(f"{name}: must be a finite number above 0, got {value!r}.")


def weight(name: str, value: Any) -> float:
    """Return `value` as a float if it can weigh a loss: a finite number of at least 0."""
    return number(name, value, least=0)


def probability(name: str, value: Any) -> float:
    """Return `value` as a float if it is in [0, 1]."""
    return number(name, value, least=0, most=1)


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name}: must be True or False, got {value!r}.")


def choice(name: str, value: Any, valid: Sequence[str]) -> str:
    """Return `value` if it is one of the valid names."""
    if isinstance(value, str) and value in valid:
        return value
    raise ConfigError(f"{name}: {value!r} is unknown{nearest(str(value), valid)}")


def block_number(name: str, value: Any, depth: int, *, of: str = "backbone") -> int:
    """Return `value` if it is a block of a network of `depth` blocks, counted from 1."""
    if is_integer(value) and 1 <= value <= depth:
        return value
    raise ConfigError(f"{name}: {value!r} is not a block of the {of}; blocks are 1..{depth}.")
