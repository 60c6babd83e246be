"""Which levels of a prior form which group: the forms that `groups` takes in a config (AHPA section 4.2, D.2, D.14, B).

The paper names four groups of the 15 layers of Stable Diffusion's encoder, G1 .. G4 of 4 + 3 + 4 + 4 layers, and routes
G3 ('mid') and G4 ('deep'). Its Appendix B groups by resolution instead, which is not the same: both are offered.
Levels that are vectors (stride 0, as a class token) are never part of a group; a router prepends them as `prefix`.
"""

import re
from collections.abc import Mapping, Sequence

from ..registry import nearest
from ..registry.contracts import LevelSpec

PAPER_LEVELS = 15  # AHPA section 5.1: "15 VAE encoder layers"
PAPER_GROUPS = {"G1": ("g1", 0, 4), "G2": ("g2", 4, 7), "G3": ("mid", 7, 11), "G4": ("deep", 11, 15)}
FORMS = (
    "Valid forms: '4/4' (the last 4 + 4 levels, any number of parts), 'resolution', 'G4' or 'G3+G4' (the paper's G1 .. "
    "G4), or {name: [levels by name or index from 0]}."
)


def resolve_groups(
    groups: str | int | Mapping[str, Sequence], spec: Mapping[str, LevelSpec], *, mixed: bool = False
) -> dict[str, tuple]:
    """-> {group: names of its levels}, from a form that a config may give; the groups are in the order given.

    groups: 'a/b[/c...]' splits the last a + b + ... levels (two groups are 'mid' and 'deep', any other number 'g1',
        'g2', ...; 'a' or the integer a is one group); 'resolution' takes the last two runs of levels of equal channels
        and stride as 'mid' and 'deep'; 'G1' .. 'G4' joined with '+' are the paper's groups ('g1', 'g2', 'mid', 'deep'),
        for a prior of exactly 15 levels; a dict names levels or gives their indices. A level may be in two groups.
    spec: the prior's levels, shallow -> deep. mixed: whether levels of one group may differ in channels.
    ValueError: an unknown form or level, an empty group, a group of levels that differ in channels, too few levels.
    """
    if isinstance(groups, Mapping):
        found = _explicit(groups, list(spec))
    else:
        maps = [name for name, level in spec.items() if level.stride > 0]
        found = _from_text(str(groups) if _is_count(groups) else groups, maps, spec)
    for group, names in found.items():
        _check_group(group, names, spec, mixed)
    return found


def _from_text(text, maps: list[str], spec) -> dict[str, tuple]:
    if isinstance(text, str):
        if re.fullmatch(r"\d+(/\d+)*", text):
            return _split([int(size) for size in text.split("/")], text, maps)
        if text == "resolution":
            return _by_resolution(maps, spec)
        if re.fullmatch(r"[Gg][1-9](\+[Gg][1-9])*", text):
            return _of_the_paper(text.upper().split("+"), text, maps)
    raise ValueError(f"groups={text!r} is not understood. {FORMS}")


def _split(sizes: list[int], text: str, maps: list[str]) -> dict[str, tuple]:
    if 0 in sizes:
        raise ValueError(f"groups={text!r} has an empty group. {FORMS}")
    if sum(sizes) > len(maps):
        raise ValueError(f"groups={text!r} needs {sum(sizes)} levels, the prior has {len(maps)}: {', '.join(maps)}.")
    start, found = len(maps) - sum(sizes), {}
    names = ("mid", "deep") if len(sizes) == 2 else [f"g{number}" for number in range(1, len(sizes) + 1)]
    for name, size in zip(names, sizes, strict=True):
        found[name] = tuple(maps[start : start + size])
        start += size
    return found


def _by_resolution(maps: list[str], spec) -> dict[str, tuple]:
    runs: list[list[str]] = []
    for name in maps:
        if runs and spec[runs[-1][-1]] == spec[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    if len(runs) < 2:
        shown = ", ".join(maps) or "none"
        raise ValueError(
            f"groups='resolution' needs levels of at least two (channels, stride), the prior's levels have "
            f"{len(runs)}: {shown}. {FORMS}"
        )
    return {"mid": tuple(runs[-2]), "deep": tuple(runs[-1])}


def _of_the_paper(wanted: list[str], text: str, maps: list[str]) -> dict[str, tuple]:
    unknown = [name for name in wanted if name not in PAPER_GROUPS]
    if unknown or len(set(wanted)) < len(wanted):
        problem = f"there is no {unknown[0]}" if unknown else "a group is named twice"
        raise ValueError(f"groups={text!r}: {problem}; the paper's groups are {', '.join(PAPER_GROUPS)}. {FORMS}")
    if len(maps) != PAPER_LEVELS:
        raise ValueError(
            f"groups={text!r}: the paper's groups are defined for {PAPER_LEVELS} levels, the prior has {len(maps)}: "
            f"{', '.join(maps)}. Use a split such as '4/4' or name the levels."
        )
    return {name: tuple(maps[first:end]) for name, first, end in (PAPER_GROUPS[key] for key in wanted)}


def _explicit(groups: Mapping, names: list[str]) -> dict[str, tuple]:
    if not groups:
        raise ValueError(f"groups is an empty dict. {FORMS}")
    found = {}
    for group, levels in groups.items():
        if not isinstance(group, str) or not group:
            raise ValueError(f"a group's name must be a text, got {group!r}.")
        listed = isinstance(levels, Sequence) and not isinstance(levels, str)
        if not listed:
            raise ValueError(f"group {group!r} must be a list of levels, got {levels!r}. {FORMS}")
        found[group] = tuple(_level(group, level, names) for level in levels)
        if len(set(found[group])) < len(found[group]):
            raise ValueError(f"group {group!r} names a level twice: {', '.join(found[group])}.")
    return found


def _level(group: str, level, names: list[str]) -> str:
    if _is_count(level):
        if level < len(names):
            return names[level]
        raise ValueError(
            f"group {group!r}: there is no level {level}; the prior has {len(names)}, counted from 0: "
            f"{', '.join(f'{index} {name}' for index, name in enumerate(names))}."
        )
    if level in names:
        return level
    raise ValueError(f"group {group!r}: the prior has no level {level!r}{nearest(level, names)}")


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_group(group: str, names: tuple[str, ...], spec, mixed: bool) -> None:
    if not names:
        raise ValueError(f"group {group!r} is empty.")
    vectors = [name for name in names if spec[name].stride <= 0]
    if vectors:
        raise ValueError(
            f"group {group!r}: {', '.join(vectors)} is a vector, not a map of features; give it as `prefix` instead."
        )
    if len({spec[name].channels for name in names}) > 1 and not mixed:
        shown = ", ".join(f"{name} ({spec[name].channels})" for name in names)
        raise ValueError(
            f"group {group!r} sums levels of different channels: {shown}. Make them groups of their own, or set pad=True."
        )
