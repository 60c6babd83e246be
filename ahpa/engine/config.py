"""Reading configs strictly: a mistake is found before data or weights are touched, and the message names the key.

`load` applies `--cfg-options`; `check_config` verifies every key, type and option, and builds the model on the meta
device, which finds what single options cannot show: a tap beyond the depth, an empty group, sizes that do not fit.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..registry import (
    DATASETS,
    HOOKS,
    LOADERS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    ConfigError,
    UserError,
    build,
    check,
    nearest,
)
from ..registry.registry import parameters

NEEDED = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
KEYS = (*NEEDED, "param_scheduler", "hooks", "visualizer", "randomness", "work_dir", "compile", "launcher",
        "custom_imports", "default_scope")  # fmt: skip
LOADER_DERIVED = ("dataset", "batch", "seed", "rank", "world", "start")


def load(path: Path | str, options: Sequence[str] = ()) -> dict:
    """Reads a config file (.py or .json) and applies KEY=VALUE options. ConfigError for what cannot be read."""
    path = Path(path)
    if not path.exists():
        near = [str(other) for other in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise UserError(f"there is no config {path}{nearest(str(path), near[:40])}")
    try:
        cfg = Config.fromfile(path).to_dict()
    except ImportError as error:
        if "custom_imports" in path.read_text():
            raise ConfigError(f"{path}: custom_imports: {error}") from error
        raise
    except (SyntaxError, NameError, AttributeError, TypeError, KeyError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    for key in [key for key in cfg if key.startswith("_")]:  # a config's own helper names
        del cfg[key]
    for option in options:
        set_option(cfg, option)
    return cfg


def parse_value(text: str) -> Any:
    """'3e-4' -> 0.0003, 'True' -> True, '[1, 2]' -> [1, 2], "dict(type='A')" -> {'type': 'A'}; else the text."""
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and not node.args:
            return {keyword.arg: parse_value(ast.unparse(keyword.value)) for keyword in node.keywords}
        return ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def set_option(cfg: Mapping, option: str) -> None:
    """Applies 'a.b.c=value'. Every part of the path but the last must be there; the last is checked with the rest."""
    key, equals, value = option.partition("=")
    if not equals or not key:
        raise ConfigError(f"--cfg-options: {option!r} is not KEY=VALUE.")
    *parents, last = key.split(".")
    place, walked = cfg, ""
    for part in parents:
        if not isinstance(place, Mapping) or part not in place:
            valid = place if isinstance(place, Mapping) else ()
            raise ConfigError(f"--cfg-options: {walked or 'the config'} has no {part!r}{nearest(part, valid)}")
        place, walked = place[part], f"{walked}.{part}".strip(".")
    if not isinstance(place, Mapping):
        raise ConfigError(f"--cfg-options: {walked} is {place!r}, which has no {last!r}.")
    if not parents and last not in KEYS:
        raise ConfigError(f"--cfg-options: the config has no {last!r}{nearest(last, KEYS)}")
    place[last] = parse_value(value)


def check_keys(cfg: Mapping) -> None:
    for key in cfg:
        if key not in KEYS:
            raise ConfigError(f"the config has an unknown key {key!r}{nearest(key, KEYS)}")
    for key in NEEDED:
        if key not in cfg:
            raise ConfigError(f"the config lacks {key!r}.")
    for key in cfg["randomness"] if cfg.get("randomness") else ():
        if key not in ("seed", "deterministic"):
            raise ConfigError(f"randomness has no option {key!r}{nearest(key, ('seed', 'deterministic'))}")


def check_data(cfg: Mapping) -> None:
    loader = {"type": "CursorLoader", **cfg["train_dataloader"]}
    known, _ = parameters(LOADERS.get(loader["type"]))
    valid = {"type", "dataset", "global_batch_size"} | set(known) - set(LOADER_DERIVED)
    for key in loader:
        if key not in valid:
            raise ConfigError(f"train_dataloader has no option {key!r}{nearest(key, valid)}")
    if "dataset" not in loader:
        raise ConfigError(f"train_dataloader lacks 'dataset'; it has {', '.join(loader) or 'nothing'}.")
    dataset, size = loader.pop("dataset"), loader.pop("global_batch_size", None)
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"train_dataloader.global_batch_size: must be a whole number above 0, got {size!r}.")
    check(DATASETS, dataset, where="train_dataloader.dataset")
    check(LOADERS, loader, where="train_dataloader", derived=LOADER_DERIVED)


def check_training(cfg: Mapping) -> None:
    wrapper = dict(cfg["optim_wrapper"])
    optimizer = wrapper.pop("optimizer", None)
    check(OPTIM_WRAPPERS, wrapper, where="optim_wrapper", derived=("optimizer",))
    check(OPTIMIZERS, optimizer, where="optim_wrapper.optimizer", derived=("params",))
    probe = [dict(params=[torch.zeros(1, requires_grad=True)])]
    built = build(OPTIMIZERS, optimizer, where="optim_wrapper.optimizer", params=probe)
    build(OPTIM_WRAPPERS, wrapper, where="optim_wrapper", optimizer=built)
    loop = {"type": "AlignmentTrainLoop", **cfg["train_cfg"]}
    build(LOOPS, loop, where="train_cfg", runner=None, dataloader=())
    for name, hook in (cfg.get("hooks") or {}).items():
        if hook is not None:
            build(HOOKS, hook, where=f"hooks.{name}")
    schedulers = cfg.get("param_scheduler") or []
    for i, scheduler in enumerate([schedulers] if isinstance(schedulers, Mapping) else schedulers):
        check(PARAM_SCHEDULERS, scheduler, where=f"param_scheduler[{i}]", derived=("optimizer",))
        if scheduler.get("by_epoch"):
            raise ConfigError(f"param_scheduler[{i}].by_epoch: schedulers count optimiser steps here; leave it out.")


def check_config(cfg: Mapping) -> torch.nn.Module:
    """Raises ConfigError for the first mistake -> the model on the meta device (shapes without memory)."""
    check_keys(cfg)
    check_data(cfg)
    check_training(cfg)
    with torch.device("meta"):
        return build(MODELS, cfg["model"], where="model")
