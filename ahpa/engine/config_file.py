"""Reading config files and applying options. Whatever is wrong with a file or with a base of it is
one `ConfigError` that names the file and, where there is one, the line."""

import ast
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ..registry import ConfigError, UserError, nearest
from ..registry.locations import PREFIX, config_path
from ..registry.validation import boolean

NEEDED = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
KEYS = (
    *NEEDED,
    "checkpoints",
    "param_scheduler",
    "hooks",
    "visualizer",
    "randomness",
    "work_dir",
    "compile",
    "launcher",
    "custom_imports",
    "default_scope",
    "demo",
    "method",
)
CUSTOM_IMPORTS = ("imports", "allow_failed_imports")
SUFFIXES = (".py", ".json", ".yaml", ".yml")  # of config files


def load(path: Path | str, options: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file and apply options.

    Args:
        path: A .py or .json config; `ahpa::NAME` is one of the shipped configs.
        options: "KEY=VALUE" each, with dotted keys.

    Raises:
        ConfigError: If the file cannot be read or an option cannot be applied.
        UserError: If there is no such file.
    """
    path = config_path(path)
    if not path.exists():
        siblings = sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []
        suggestions = nearest(str(path), [str(other) for other in siblings[:200]])
        raise UserError(f"there is no config {path}{suggestions}")
    check_file(path)
    try:
        with package_bases():
            cfg = Config.fromfile(path, import_custom_modules=False).to_dict()
    except ConfigError:
        raise
    except Exception as error:  # a config is a program and may fail in any way
        reason = " ".join(str(error).split())
        raise ConfigError(f"{place_of(error, path)}: {type(error).__name__}: {reason}") from error
    cfg = {key: value for key, value in cfg.items() if not str(key).startswith("_")}
    for option in options:
        set_option(cfg, option)
    import_custom_modules(cfg.get("custom_imports"), path)
    return cfg


def check_file(path: Path) -> None:
    """Check that a config file can be read and parsed, without executing it. Raises ConfigError."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise ConfigError(f"{path}: a config file is expected, this is {kind}.")
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a config file must end in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8")
        parsed = json.loads(text) if path.suffix == ".json" else {}
        if path.suffix == ".py":
            ast.parse(text, filename=str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: SyntaxError: {error.msg}.") from error
    except (ValueError, RecursionError, MemoryError) as error:  # no text, no JSON, deep nesting
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not a config ({type(error).__name__}: {reason}).") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path}: must hold a dict of sections, got a {type(parsed).__name__}.")


def place_of(error: Exception, path: Path) -> str:
    """Return the file and line of a config, or of the last of its bases, that an error is from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.name == "<module>"]
    return f"{own[-1].filename}: line {own[-1].lineno}" if own else str(path)


def import_custom_modules(custom: Any, path: Path | str) -> None:
    """Import the modules of `custom_imports=dict(imports=[...])`. Raises ConfigError."""
    if custom is None:
        return
    check_section("custom_imports", custom, CUSTOM_IMPORTS)
    names = custom.get("imports", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"custom_imports.imports: must be a list of modules, got {names!r}.")
    allowed = boolean(
        "custom_imports.allow_failed_imports", custom.get("allow_failed_imports", False)
    )
    try:
        import_modules_from_strings(list(names), allow_failed_imports=allowed)
    except ImportError as error:
        searched = " ".join(sys.path)
        raise ConfigError(
            f"{path}: custom_imports: failed to import {', '.join(names)}: {error} (searched: "
            f"{searched}). Install the package, or name its folder in PYTHONPATH."
        ) from error


@contextmanager
def package_bases() -> Iterator[None]:
    """Let `_base_ = ["ahpa::PATH"]` find the shipped configs while a file is read, and check each
    base before mmengine reads it: it must be there, be a config, and not lead back to itself.

    mmengine has `PACKAGE::PATH` too, but only for a fixed list of packages, and its lookup needs
    `pkg_resources`, which today's setuptools no longer has.
    """
    find = Config._get_cfg_path
    above: dict[str, set[str]] = {}  # file -> the files that lead to it

    def find_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not isinstance(cfg_path, str):
            raise ConfigError(f"{filename}: _base_: must be a path or a list, got {cfg_path!r}.")
        if cfg_path.startswith(PREFIX):
            base, scope = str(config_path(cfg_path)), None
        else:
            base, scope = find(cfg_path, filename)
        inside = os.path.realpath(filename)
        place = os.path.realpath(base)
        leads = {inside} | above.get(inside, set())
        if place in leads:
            raise ConfigError(f"{filename}: _base_: {cfg_path!r} leads back to the config itself.")
        if not os.path.exists(place):
            raise ConfigError(f"{filename}: _base_: there is no config {base}.")
        check_file(Path(base))
        above.setdefault(place, set()).update(leads)
        return base, scope

    Config._get_cfg_path = staticmethod(find_ours)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(find)


def parse_value(text: str) -> Any:
    """Parse the value of an option.

    '3e-4' -> 0.0003, 'True' -> True, '[1, 2]' -> [1, 2], "dict(type='A')" -> {'type': 'A'};
    anything else stays text.
    """
    words = {"true": True, "false": False, "none": None}
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
            return {k.arg: parse_value(ast.unparse(k.value)) for k in node.keywords}
        return ast.literal_eval(node)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return words.get(text.lower(), text)


def set_option(cfg: dict[str, Any], option: str) -> None:
    """Apply "a.b.c=value" to a config; every part of the key but the last must exist.

    Raises:
        ConfigError: If the option has another form or the key does not exist.
    """
    key, equals, value = option.partition("=")
    if not equals or not key:
        raise ConfigError(f"--cfg-options: {option!r} is not of the form KEY=VALUE.")
    *parents, last = key.split(".")
    place: Any = cfg
    walked = ""
    for part in parents:
        if not isinstance(place, Mapping) or part not in place:
            valid = place if isinstance(place, Mapping) else ()
            where = walked or "the config"
            raise ConfigError(f"--cfg-options: {where} has no {part!r}{nearest(part, valid)}")
        place = place[part]
        walked = f"{walked}.{part}".strip(".")
    if not isinstance(place, dict):
        raise ConfigError(f"--cfg-options: {walked} is {place!r}, which has no {last!r}.")
    if not parents and last not in KEYS:
        raise ConfigError(f"--cfg-options: the config has no {last!r}{nearest(last, KEYS)}")
    place[last] = parse_value(value)


def check_section(name: str, section: Any, options: Sequence[str]) -> None:
    """Check that a section is a dict of known options. Raises ConfigError."""
    check_dict(name, section)
    for key in section:
        if key not in options:
            raise ConfigError(f"{name} has no option {key!r}{nearest(key, options)}")


def check_dict(name: str, section: Any) -> None:
    """Check that a section is a dict. Raises ConfigError."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: must be a dict, got {section!r}.")
