"""Configs as plain data, so that reading a checkpoint or a config.json executes nothing."""

from collections.abc import Mapping
from typing import Any


def to_plain(value: Any) -> Any:
    """Reduce a value to dicts, lists, strings, numbers, booleans and None; else to its text."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)
