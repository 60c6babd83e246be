"""`--demo`: any config on a laptop. The data set, the sizes and the schedule become small; the method stays.

A component says itself how it becomes small: its class attribute `demo` holds the options that are set here (the
autoencoder's and the vision encoder's point to the bundled ones). What is left is the resolution, the data set, the
schedule and the taps, which keep their share of the depth.
"""

import copy
from collections.abc import Mapping

from .registry import (
    ALIGNMENTS,
    AUTOENCODERS,
    BACKBONES,
    CONDITIONERS,
    FLOW_LOSSES,
    FLOWS,
    HOOKS,
    LOSSES,
    PRIORS,
    PROJECTORS,
    ROUTERS,
    TEXT_ENCODERS,
    plugins,
)

RESOLUTION = 64
ITERATIONS, BATCH, LEARNING_RATE, EMA, LOG_INTERVAL = 1000, 32, 2e-3, 0.995, 50
COMPONENTS = (AUTOENCODERS, BACKBONES, PRIORS, ROUTERS, PROJECTORS, LOSSES, FLOWS, FLOW_LOSSES, CONDITIONERS,
              TEXT_ENCODERS, ALIGNMENTS, HOOKS)  # fmt: skip


def _component(name):
    plugins.load()
    for registry in COMPONENTS:
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None


def shrink(cfg) -> None:
    """Applies the `demo` options of every component in a tree of dicts, in place."""
    if not isinstance(cfg, Mapping):
        return
    for value in list(cfg.values()):
        shrink(value)
    if isinstance(cfg.get("type"), str):
        for key, value in getattr(_component(cfg["type"]), "demo", {}).items():
            cfg[key] = copy.deepcopy(value)


def move_blocks(cfg, depth: int, share: float) -> None:
    """Block numbers (`tap`, `block`, `encoder_depth`) in a tree of dicts keep their share of the depth; wrong ones stay,
    to be told of."""
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            move_blocks(value, depth, share)
        elif key in ("tap", "block", "encoder_depth") and isinstance(value, int) and 1 <= value <= depth:
            cfg[key] = max(1, int(value * share + 0.5))


def overlay(cfg, *, keep_data: bool = False) -> None:
    """Turns a checked or unchecked config into its demo, in place; `keep_data` leaves the data set but its size."""
    model = cfg["model"]
    depth = model["backbone"].get("depth")
    shrink(model)
    shrink(cfg.get("hooks", {}))
    model["resolution"], model["ema"] = RESOLUTION, EMA
    if depth:
        share = model["backbone"].get("depth") / depth
        for part in (
            model["backbone"],
            *(model.get("alignments") or {}).values(),
            *(model.get("priors") or {}).values(),
        ):
            move_blocks(part, depth, share)
    loader = cfg["train_dataloader"]
    if keep_data:
        loader["dataset"]["resolution"] = RESOLUTION
    else:
        loader["dataset"] = dict(type="ShapesDataset", resolution=RESOLUTION)
    loader["global_batch_size"], loader["num_workers"] = BATCH, 0
    cfg["optim_wrapper"]["optimizer"]["lr"] = LEARNING_RATE
    cfg["optim_wrapper"]["precision"], cfg["optim_wrapper"]["accumulative_counts"] = "fp32", 1
    cfg["train_cfg"] = dict(max_iters=ITERATIONS, log_interval=LOG_INTERVAL)
    cfg["param_scheduler"] = None
