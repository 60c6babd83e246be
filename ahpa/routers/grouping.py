"""Which levels of a prior form which group: the forms that `groups` takes in a config
(AHPA, section 4.2, Tables D.2 and D.14, Appendix B)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import ConfigError, nearest
from ..registry.contracts import LevelSpec
from ..registry.validation import is_integer

Levels = Mapping[str, LevelSpec]
Groups = str | int | Mapping[str, Sequence[str | int]]
Resolved = dict[str, tuple[str, ...]]

PAPER_LEVELS = 15  # AHPA, section 5.1: "15 VAE encoder layers"
PAPER_GROUPS = {
    "G1": ("g1", 0, 4),
    "G2": ("g2", 4, 7),
    "G3": ("mid", 7, 11),
    "G4": ("deep", 11, 15),
}
FORMS = (
    "Valid forms: '4/4' (the last 4 + 4 levels, any number of parts), 'resolution', 'G4' or "
    "'G3+G4' (the paper's G1 .. G4), or {name: [levels by name or index from 0]}."
)


def resolve_groups(groups: Groups, levels: Levels, *, mixed: bool = False) -> Resolved:
    """Resolve any form that a config may give into named groups of levels.

    The paper names four groups of the 15 layers of Stable Diffusion's encoder, G1 .. G4 of
    4 + 3 + 4 + 4 layers, and routes G3 ("mid") and G4 ("deep"). Its Appendix B groups by
    resolution, which gives other groups; both forms are offered. Only feature maps belong to
    groups: a router prepends vectors, such as a class token, as its `prefix`.

    Args:
        groups: One of these forms.

            - "a/b[/c...]": the last a + b + ... levels. Two groups are called "mid" and "deep",
              any other number "g1", "g2", ...; the integer a is the same as "a", one group.
            - "resolution": the last two runs of levels of equal channels and stride, as "mid" and
              "deep".
            - "G1" .. "G4", joined with "+": the paper's groups, called "g1", "g2", "mid" and
              "deep", for a prior of exactly 15 levels.
            - {group: [level names, or indices from 0]}. A level may belong to two groups.
        levels: The prior's levels, shallow -> deep.
        mixed: Whether levels of one group may differ in channels.

    Returns:
        {group: names of its levels}, in the order given.

    Raises:
        ConfigError: For an unknown form or level, an empty group, a group of levels that differ in
            channels, or too few levels.
    """
    if isinstance(groups, Mapping):
        found = _explicit(groups, list(levels))
    else:
        maps = [name for name, level in levels.items() if level.is_map]
        text = str(groups) if _is_index(groups) else groups
        found = _from_text(text, maps, levels)
    for group, names in found.items():
        _check_group(group, names, levels, mixed)
    return found


def _from_text(text: Any, maps: list[str], levels: Levels) -> Resolved:
    if isinstance(text, str):
        if re.fullmatch(r"\d+(/\d+)*", text):
            sizes = [int(size) for size in text.split("/")]
            return _split(sizes, text, maps)
        if text == "resolution":
            return _by_resolution(maps, levels)
        if re.fullmatch(r"[Gg][1-9](\+[Gg][1-9])*", text):
            return _of_the_paper(text.upper().split("+"), text, maps)
    raise ConfigError(f"groups: {text!r} is not a valid form. {FORMS}")


def _split(sizes: list[int], text: str, maps: list[str]) -> Resolved:
    total = sum(sizes)
    if 0 in sizes:
        raise ConfigError(f"groups: {text!r} has an empty group. {FORMS}")
    if total > len(maps):
        raise ConfigError(
            f"groups: {text!r} needs {total} levels, but the prior has {len(maps)}: "
            f"{', '.join(maps)}."
        )
    if len(sizes) == 2:
        names = ["mid", "deep"]
    else:
        names = [f"g{number}" for number in range(1, len(sizes) + 1)]
    start = len(maps) - total
    found = {}
    for name, size in zip(names, sizes, strict=True):
        found[name] = tuple(maps[start : start + size])
        start += size
    return found


def _by_resolution(maps: list[str], levels: Levels) -> Resolved:
    runs: list[list[str]] = []
    for name in maps:
        if runs and levels[runs[-1][-1]] == levels[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    if len(runs) < 2:
        shown = ", ".join(maps) or "none"
        raise ConfigError(
            "groups: 'resolution' needs levels of at least two (channels, stride), but the "
            f"prior's levels have {len(runs)}: {shown}. {FORMS}"
        )
    return {"mid": tuple(runs[-2]), "deep": tuple(runs[-1])}


def _of_the_paper(wanted: list[str], text: str, maps: list[str]) -> Resolved:
    valid = ", ".join(PAPER_GROUPS)
    for name in wanted:
        if name not in PAPER_GROUPS:
            raise ConfigError(f"groups: {text!r}: there is no {name}; valid: {valid}. {FORMS}")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"groups: {text!r}: a group is named twice. {FORMS}")
    if len(maps) != PAPER_LEVELS:
        raise ConfigError(
            f"groups: {text!r}: the paper's groups are defined for {PAPER_LEVELS} levels, but the "
            f"prior has {len(maps)}: {', '.join(maps)}. Use a split such as '4/4' or name the "
            "levels."
        )
    found = {}
    for key in wanted:
        name, first, end = PAPER_GROUPS[key]
        found[name] = tuple(maps[first:end])
    return found


def _explicit(groups: Mapping[str, Sequence[str | int]], names: list[str]) -> Resolved:
    if not groups:
        raise ConfigError(f"groups: at least one group is needed, got an empty dict. {FORMS}")
    found = {}
    for group, members in groups.items():
        _check_name(group)
        if isinstance(members, str) or not isinstance(members, Sequence):
            raise ConfigError(
                f"groups: group {group!r} must be a list of levels, got {members!r}. {FORMS}"
            )
        found[group] = tuple(_level(group, member, names) for member in members)
        if len(set(found[group])) < len(found[group]):
            shown = ", ".join(found[group])
            raise ConfigError(f"groups: group {group!r} names a level twice: {shown}.")
    return found


def _check_name(group: Any) -> None:
    if not isinstance(group, str) or not group or "." in group or "/" in group:
        raise ConfigError(
            f"groups: a group's name must be a text without dots or slashes, got {group!r}."
        )


def _level(group: str, member: Any, names: list[str]) -> str:
    if _is_index(member):
        if member < len(names):
            return names[member]
        shown = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        raise ConfigError(
            f"groups: group {group!r}: there is no level {member}; the prior has {len(names)}, "
            f"counted from 0: {shown}."
        )
    if member in names:
        return member
    hint = nearest(member, names)
    raise ConfigError(f"groups: group {group!r}: the prior has no level {member!r}{hint}")


def _is_index(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _check_group(group: str, names: tuple[str, ...], levels: Levels, mixed: bool) -> None:
    if not names:
        raise ConfigError(f"groups: group {group!r} is empty.")
    vectors = [name for name in names if levels[name].is_vector]
    if vectors:
        raise ConfigError(
            f"groups: group {group!r}: {', '.join(vectors)} is a vector, not a feature map; "
            "pass it as `prefix` instead."
        )
    others = [name for name in names if not levels[name].is_map]
    if others:
        raise ConfigError(
            f"groups: group {group!r}: {', '.join(others)} holds attention logits, not a feature "
            "map; compare it with an AttentionAlignment."
        )
    widths = {levels[name].channels for name in names}
    if len(widths) > 1 and not mixed:
        shown = ", ".join(f"{name} ({levels[name].channels})" for name in names)
        raise ConfigError(
            f"groups: group {group!r} sums levels of different channels: {shown}. Put them into "
            "separate groups, or set pad=True."
        )
