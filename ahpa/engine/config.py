"""Reading configs strictly: a mistake is found before data or weights are touched.

`load` reads a file and applies --cfg-options. `check_config` checks every key, type and option, and
builds the model on the meta device, which finds what single options cannot show: a tap beyond the
depth, an empty group, sizes that do not fit.
"""

import ast
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ..registry import (
    DATASETS,
    HOOKS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    ConfigError,
    UserError,
    build,
    check,
    nearest,
)
from ..registry import validation as valid
from ..registry.locations import PREFIX, config_path
from ..registry.registry import parameters
from ..registry.validation import boolean, choice, integer, positive_int
from .assembly import build_model, with_defaults
from .denoiser import AlignedDenoiser
from .distributed import LAUNCHERS
from .hooks import SampleGrids
from .optimiser import Optimiser
from .runner import CHECKPOINTS, batch_per_process
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
CUSTOM_IMPORTS = ("imports", "allow_failed_imports")
SUFFIXES = (".py", ".json", ".yaml", ".yml")  # of config files
SECTIONS = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
OPTIONAL_SECTIONS = ("checkpoints", "hooks", "visualizer", "randomness", "custom_imports", "demo")
PARTS = (  # dicts inside the sections that commands change
    ("model", "backbone"),
    ("model", "tokenizer"),
    ("train_dataloader", "dataset"),
    ("optim_wrapper", "optimizer"),
)
LARGEST_SEED = 2**32 - 1  # of numpy's global generator
SCHEDULE_RANGES = {  # options of mmengine's schedulers, which it does not check
    "T_max": positive_int,
    "begin": integer,
    "div_factor": valid.positive,
    "end": positive_int,
    "end_factor": valid.weight,
    "eta_max": valid.positive,
    "eta_min": valid.weight,
    "eta_min_ratio": valid.probability,
    "factor": valid.positive,
    "final_div_factor": valid.positive,
    "gamma": valid.positive,
    "milestones": positive_int,
    "pct_start": valid.probability,
    "periods": positive_int,
    "power": valid.positive,
    "start_factor": valid.positive,
    "step_size": positive_int,
    "total_steps": positive_int,
}


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
    here = Path(__file__).resolve()
    own = [frame for frame in frames if frame.name == "<module>" and frame.filename != str(here)]
    return f"{own[-1].filename}: line {own[-1].lineno}" if own else str(path)


def import_custom_modules(custom: Any, path: Path) -> None:
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


def check_keys(cfg: Mapping[str, Any]) -> None:
    """Check the config's outline: its keys, that sections are dicts, and plain values.

    Raises:
        ConfigError: For the first mistake.
    """
    for key in cfg:
        if key not in KEYS:
            raise ConfigError(f"the config has an unknown key {key!r}{nearest(key, KEYS)}")
    for key in NEEDED:
        if key not in cfg:
            raise ConfigError(f"the config needs the key {key!r}.")
    for key in SECTIONS:
        check_dict(key, cfg[key])
    for key in OPTIONAL_SECTIONS:
        if cfg.get(key) is not None:
            check_dict(key, cfg[key])
    for section, key in PARTS:
        if key in cfg[section]:
            check_dict(f"{section}.{key}", cfg[section][key])
    with_defaults(cfg["model"])
    boolean("compile", cfg.get("compile", False))
    choice("launcher", cfg.get("launcher", "none"), LAUNCHERS)
    for key in ("work_dir", "default_scope"):
        if cfg.get(key) is not None:
            check_text(key, cfg[key])
    check_randomness(cfg.get("randomness") or {})
    checkpoints = cfg.get("checkpoints") or {}
    check_section("checkpoints", checkpoints, tuple(CHECKPOINTS))
    for key, value in checkpoints.items():
        positive_int(f"checkpoints.{key}", value)


def check_text(name: str, value: Any) -> None:
    """Check that a value is text that is not empty. Raises ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: must be text that is not empty, got {value!r}.")


def check_randomness(section: Mapping[str, Any]) -> None:
    """Check the section `randomness`. Raises ConfigError."""
    check_section("randomness", section, RANDOMNESS)
    integer("randomness.seed", section.get("seed", 0), most=LARGEST_SEED)
    boolean("randomness.deterministic", section.get("deterministic", False))


def check_data(cfg: Mapping[str, Any]) -> None:
    """Check the section `train_dataloader` without opening any data. Raises ConfigError."""
    loader = cfg["train_dataloader"]
    check_section("train_dataloader", loader, DATALOADER)
    for key in ("dataset", "global_batch_size"):
        if key not in loader:
            raise ConfigError(f"train_dataloader needs the option {key!r}.")
    positive_int("train_dataloader.global_batch_size", loader["global_batch_size"])
    integer("train_dataloader.num_workers", loader.get("num_workers", 0))
    where = "train_dataloader.dataset"
    check(DATASETS, loader["dataset"], where=where, derived=("resolution",))
    for key, value in loader["dataset"].items():
        if isinstance(value, str):
            check_text(f"{where}.{key}", value)


def check_training(cfg: Mapping[str, Any]) -> None:
    """Check optimiser, length and schedules by building them and taking a step of them.

    Raises:
        ConfigError: For the first mistake.
    """
    wrapper = dict(cfg["optim_wrapper"])
    optimizer = wrapper.pop("optimizer", None)
    options = [name for name in parameters(Optimiser)[0] if name != "optimizer"]
    check_section("optim_wrapper", wrapper, options)
    where = "optim_wrapper.optimizer"
    check(OPTIMIZERS, optimizer, where=where, derived=("params",))
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    probe = build(OPTIMIZERS, optimizer, where=where, params=[{"params": [weight]}])
    Optimiser(optimizer=probe, **wrapper)
    check_step(probe, where)
    check_section("train_cfg", cfg["train_cfg"], TRAIN_CFG)
    if "max_iters" not in cfg["train_cfg"]:
        raise ConfigError("train_cfg needs the option 'max_iters'.")
    TrainOptions(**cfg["train_cfg"])
    batch_per_process(cfg, world=1)
    check_schedules(cfg.get("param_scheduler"), probe, cfg["train_cfg"]["max_iters"])


def check_step(optimizer: torch.optim.Optimizer, where: str) -> None:
    """Take a step, which shows whether the loop can use this optimiser. Raises ConfigError."""
    try:
        optimizer.step()
    except Exception as error:  # such as LBFGS's, which computes the loss itself
        reason = " ".join(str(error).split())
        name = type(optimizer).__name__
        raise ConfigError(f"{where}: {name} cannot train a transformer here: {reason}") from error


def check_schedules(schedulers: Any, optimizer: torch.optim.Optimizer, max_iters: int) -> None:
    """Check the section `param_scheduler`: build each scheduler and take its first and last steps.

    Raises:
        ConfigError: For the first mistake.
    """
    listed = [schedulers] if isinstance(schedulers, Mapping) else schedulers or []
    if not isinstance(listed, (list, tuple)):
        raise ConfigError(
            f"param_scheduler: must be a dict, a list of them or None, got {schedulers!r}."
        )
    for number, scheduler in enumerate(listed):
        where = f"param_scheduler[{number}]"
        check(PARAM_SCHEDULERS, scheduler, where=where, derived=("optimizer",))
        if scheduler.get("by_epoch"):
            raise ConfigError(
                f"{where}.by_epoch: schedules count optimiser steps here; remove the option."
            )
        for key, validate in SCHEDULE_RANGES.items():
            values = scheduler.get(key)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if value is not None:
                    validate(f"{where}.{key}", value)
        counted = {"by_epoch": False, **scheduler}
        built = build(PARAM_SCHEDULERS, counted, where=where, optimizer=optimizer)
        check_schedule(built, where, max_iters)


def check_schedule(scheduler: Any, where: str, max_iters: int) -> None:
    """Take the first and the last step of a schedule. Raises ConfigError if one fails."""
    try:
        scheduler.optimizer.step()
        scheduler.step()
        values = scheduler.get_last_value()
        ends = {"last_step": max(max_iters - 2, 0), "_global_step": max(max_iters - 2, 0)}
        scheduler.load_state_dict({**scheduler.state_dict(), **ends})
        scheduler.step()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        name = type(scheduler).__name__
        raise ConfigError(
            f"{where}: {name} cannot be stepped through {max_iters} iterations: {reason}"
        ) from error
    wrong = [value for value in values if not math.isfinite(value) or value < 0]
    if wrong:
        raise ConfigError(f"{where}: its first step would set {scheduler.param_name}={wrong[0]}.")


def check_visualizer(section: Mapping[str, Any] | None) -> None:
    """Check the section `visualizer` and its back-ends. Raises ConfigError."""
    if section is None:
        return
    check(VISUALIZERS, section, where="visualizer")
    backends = section.get("vis_backends") or []
    for number, backend in enumerate([backends] if isinstance(backends, Mapping) else backends):
        given = {"save_dir": "", **backend} if isinstance(backend, Mapping) else backend
        check(VISBACKENDS, given, where=f"visualizer.vis_backends[{number}]")


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
    check_visualizer(cfg.get("visualizer"))
    hooks = {
        name: build(HOOKS, hook, where=f"hooks.{name}")
        for name, hook in (cfg.get("hooks") or {}).items()
        if hook is not None
    }
    with torch.device("meta"):
        net = build_model(cfg["model"])
    for name, hook in hooks.items():
        if isinstance(hook, SampleGrids):
            hook.check(net, where=f"hooks.{name}")
    return net
