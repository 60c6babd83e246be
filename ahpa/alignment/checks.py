"""Checks that several alignments share: names that appear in terms, and the prior that is read."""

from collections.abc import Mapping

from ..registry import ConfigError, nearest
from ..registry.contracts import LevelSpec


def check_name(kind: str, name: str) -> str:
    """Return the name of an alignment or a criterion if it can stand in "<alignment>/<criterion>".

    Raises:
        ConfigError: If it is empty, or has a dot (it is part of state-dict keys) or a slash.
    """
    if isinstance(name, str) and name and "." not in name and "/" not in name:
        return name
    raise ConfigError(f"{name!r} cannot name {kind}: a text without dots or slashes is needed.")


def levels_of(
    source: str, priors: Mapping[str, Mapping[str, LevelSpec]], where: str
) -> Mapping[str, LevelSpec]:
    """Return the levels of the prior `source`. Raises ConfigError if no prior has that name."""
    if source in priors:
        return priors[source]
    hint = nearest(str(source), priors)
    raise ConfigError(f"{where}.source: no prior is called {source!r}{hint}")
