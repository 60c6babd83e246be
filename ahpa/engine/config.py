"""Reading configs strictly: a mistake is found before data or weights are touched.

`load` reads a file and applies --cfg-options (`config_file.py`). `check_config` checks every key,
type and option, takes a step of the optimiser and of the schedules, and builds the model on the
meta device, which finds what single options cannot show: a tap beyond the depth, an empty group,
sizes that do not fit.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

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
from ..registry.contracts import Dataset
from ..registry.registry import parameters
from ..registry.shapes import shapes_only
from ..registry.validation import boolean, choice, integer, positive_int
from .assembly import build_model, with_defaults
from .config_file import (
    KEYS,
    NEEDED,
    check_dict,
    check_section,
    import_custom_modules,
    load,
    set_option,
)
from .denoiser import AlignedDenoiser
from .distributed import LAUNCHERS
from .optimiser import Optimiser
from .trainer import TrainOptions

__all__ = ["check_config", "check_keys", "import_custom_modules", "load", "set_option"]

DATALOADER = ("dataset", "global_batch_size", "num_workers")
TRAIN_CFG = ("max_iters", "log_interval")
RANDOMNESS = ("seed", "deterministic")
SECTIONS = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
OPTIONAL_SECTIONS = ("checkpoints", "hooks", "visualizer", "randomness", "custom_imports", "demo")
PARTS = (  # dicts inside the sections that commands change
    ("model", "backbone"),
    ("model", "tokenizer"),
    ("train_dataloader", "dataset"),
    ("optim_wrapper", "optimizer"),
)
CHECKPOINTS = {"interval": 10_000, "keep": 3}  # defaults of the section `checkpoints`
REPLACED_HOOKS = {  # hooks of mmengine whose work is done elsewhere -> where
    "CheckpointHook": "the section `checkpoints`",
    "EMAHook": "model.ema",
    "EarlyStoppingHook": "nothing, as there is no validation",
    "LoggerHook": "train_cfg.log_interval",
    "ParamSchedulerHook": "the section `param_scheduler`",
}
LARGEST_SEED = 2**32 - 1  # of numpy's global generator
ENDLESS = 10**8  # steps; mmengine's schedules end after 10**9 if nothing else is said
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
    for key in ("work_dir", "default_scope", "method"):
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
    kind = check(DATASETS, loader["dataset"], where=where, derived=("resolution",))
    for key, value in loader["dataset"].items():
        if isinstance(value, str):
            check_text(f"{where}.{key}", value)
    if isinstance(kind, type) and issubclass(kind, Dataset):
        options = {key: value for key, value in loader["dataset"].items() if key != "type"}
        kind.check_options(options, where)


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
        check_length(built, where)
        check_schedule(built, where, max_iters)


def check_length(scheduler: Any, where: str) -> None:
    """Refuse a schedule of no given length, which mmengine stretches over a billion steps.

    Raises:
        ConfigError: If neither `end` nor another option says how long it is.
    """
    lengths = ("T_max", "total_steps", "total_iters")
    state = scheduler.state_dict()
    if max(state.get(name, 0) for name in lengths) >= ENDLESS:
        own = [name for name in lengths if name in parameters(type(scheduler))[0]]
        wanted = " or ".join(("end", *own))
        raise ConfigError(
            f"{where}: {type(scheduler).__name__} needs the option {wanted}, a number of optimiser "
            "steps; without one it has no length."
        )


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


def build_hooks(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Build the config's hooks by name; a hook that is set to None is off.

    Raises:
        ConfigError: For a mistake, or a hook whose work the run does itself.
    """
    hooks = {}
    for name, hook in (cfg.get("hooks") or {}).items():
        if hook is None:
            continue
        where = f"hooks.{name}"
        hooks[name] = build(HOOKS, hook, where=where)
        kind = hook["type"].rpartition(".")[2]
        if kind in REPLACED_HOOKS:
            raise ConfigError(
                f"{where}: {kind} would do twice, or in another way, what the run does itself; its "
                f"place is taken by {REPLACED_HOOKS[kind]}. Remove the hook."
            )
    return hooks


def check_hooks(cfg: Mapping[str, Any], net: AlignedDenoiser) -> None:
    """Check the section `hooks` against the model. Raises ConfigError."""
    hooks = build_hooks(cfg)
    from .hooks import ChecksModel

    for name, hook in hooks.items():
        if isinstance(hook, ChecksModel):
            hook.check(net, where=f"hooks.{name}")


def batch_per_process(cfg: Mapping[str, Any], world: int) -> int:
    """Return the samples of one micro-batch of one of `world` processes.

    Raises:
        UserError: If the global batch size cannot be divided.
    """
    total = positive_int(
        "train_dataloader.global_batch_size", cfg["train_dataloader"]["global_batch_size"]
    )
    accumulate = cfg["optim_wrapper"].get("accumulative_counts", 1)
    batch, rest = divmod(total, world * accumulate)
    if rest or not batch:
        raise UserError(
            f"train_dataloader.global_batch_size: {total} cannot be divided by {world} processes x "
            f"{accumulate} accumulated batches."
        )
    return batch


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
    with shapes_only():
        net = build_model(cfg["model"])
    # Last what makes mmengine and torch import a second's worth of modules.
    check_visualizer(cfg.get("visualizer"))
    check_hooks(cfg, net)
    check_training(cfg)
    return net
