"""Reading configs strictly: a mistake is found before data or weights are touched.

`load` reads a file and applies --cfg-options. `check_config` checks every key, type and option, and
builds the model on the meta device, which finds what single options cannot show: a tap beyond the
depth, an empty group, sizes that do not fit.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..registry import (
    DATASETS,
    HOOKS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    ConfigError,
    UserError,
    build,
    check,
    nearest,
)
from ..registry.locations import PREFIX, config_path
from ..registry.registry import parameters
from ..registry.validation import positive_int
from .assembly import build_model
from .denoiser import AlignedDenoiser
from .optimiser import Optimiser
from .runner import CHECKPOINTS
from .trainer import TrainOptions

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
)
DATALOADER = ("dataset", "global_batch_size", "num_workers")
TRAIN_CFG = ("max_iters", "log_interval")
RANDOMNESS = ("seed", "deterministic")


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
    try:
        with package_bases():
            cfg = Config.fromfile(path).to_dict()
    except ImportError as error:
        if "custom_imports" in path.read_text():
            raise ConfigError(f"{path}: custom_imports: {error}") from error
        raise
    except (SyntaxError, NameError, AttributeError, TypeError, KeyError, OSError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    cfg = {key: value for key, value in cfg.items() if not key.startswith("_")}
    for option in options:
        set_option(cfg, option)
    return cfg


@contextmanager
def package_bases() -> Iterator[None]:
    """Let `_base_ = ["ahpa::PATH"]` find the shipped configs while a file is read.

    mmengine has `PACKAGE::PATH` too, but only for a fixed list of packages, and its lookup needs
    `pkg_resources`, which today's setuptools no longer has.
    """
    find = Config._get_cfg_path

    def find_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return str(config_path(cfg_path)), None
        return find(cfg_path, filename)

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
    except (ValueError, SyntaxError):
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


def check_section(name: str, section: Any, valid: Sequence[str]) -> None:
    """Check that a section is a dict of known options. Raises ConfigError."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: must be a dict, got {section!r}.")
    for key in section:
        if key not in valid:
            raise ConfigError(f"{name} has no option {key!r}{nearest(key, valid)}")


def check_keys(cfg: Mapping[str, Any]) -> None:
    """Check the config's top-level keys. Raises ConfigError."""
    for key in cfg:
        if key not in KEYS:
            raise ConfigError(f"the config has an unknown key {key!r}{nearest(key, KEYS)}")
    for key in NEEDED:
        if key not in cfg:
            raise ConfigError(f"the config needs the key {key!r}.")
    for key in ("hooks", "demo"):
        if not isinstance(cfg.get(key) or {}, Mapping):
            raise ConfigError(f"{key}: must be a dict, got {cfg[key]!r}.")
    check_section("randomness", cfg.get("randomness") or {}, RANDOMNESS)
    checkpoints = cfg.get("checkpoints") or {}
    check_section("checkpoints", checkpoints, tuple(CHECKPOINTS))
    for key, value in checkpoints.items():
        positive_int(f"checkpoints.{key}", value)


def check_data(cfg: Mapping[str, Any]) -> None:
    """Check the section `train_dataloader` without opening any data. Raises ConfigError."""
    loader = cfg["train_dataloader"]
    check_section("train_dataloader", loader, DATALOADER)
    for key in ("dataset", "global_batch_size"):
        if key not in loader:
            raise ConfigError(f"train_dataloader needs the option {key!r}.")
    positive_int("train_dataloader.global_batch_size", loader["global_batch_size"])
    derived = ("resolution",)
    check(DATASETS, loader["dataset"], where="train_dataloader.dataset", derived=derived)


def check_training(cfg: Mapping[str, Any]) -> None:
    """Check optimiser, schedules, hooks and length by building them. Raises ConfigError."""
    wrapper = dict(cfg["optim_wrapper"])
    optimizer = wrapper.pop("optimizer", None)
    valid = [name for name in parameters(Optimiser)[0] if name != "optimizer"]
    check_section("optim_wrapper", wrapper, valid)
    where = "optim_wrapper.optimizer"
    check(OPTIMIZERS, optimizer, where=where, derived=("params",))
    probe = [{"params": [torch.zeros(1, requires_grad=True)]}]
    Optimiser(optimizer=build(OPTIMIZERS, optimizer, where=where, params=probe), **wrapper)
    check_section("train_cfg", cfg["train_cfg"], TRAIN_CFG)
    if "max_iters" not in cfg["train_cfg"]:
        raise ConfigError("train_cfg needs the option 'max_iters'.")
    TrainOptions(**cfg["train_cfg"])
    for name, hook in (cfg.get("hooks") or {}).items():
        if hook is not None:
            build(HOOKS, hook, where=f"hooks.{name}")
    schedulers = cfg.get("param_scheduler") or []
    for number, scheduler in enumerate(
        [schedulers] if isinstance(schedulers, Mapping) else schedulers
    ):
        where = f"param_scheduler[{number}]"
        check(PARAM_SCHEDULERS, scheduler, where=where, derived=("optimizer",))
        if scheduler.get("by_epoch"):
            raise ConfigError(
                f"{where}.by_epoch: schedules count optimiser steps here; remove the option."
            )


def check_config(cfg: Mapping[str, Any]) -> AlignedDenoiser:
    """Check a whole config.

    Returns:
        The model on the meta device: shapes without memory.

    Raises:
        ConfigError: For the first mistake, naming its key.
    """
    check_keys(cfg)
    check_data(cfg)
    check_training(cfg)
    with torch.device("meta"):
        return build_model(cfg["model"])
