"""--demo: any config on a laptop. Data, sizes and schedule become small; the method stays.

`SMALL` is the one place that says what becomes small. An outside package's config adds its own in a
section `demo`, which is laid over the config.
"""

import copy
from collections.abc import Mapping
from typing import Any

from ..conditioning.text import PROMPTS
from ..registry import ConfigError
from ..registry.validation import is_integer, positive_int

RESOLUTION = 64
ITERATIONS = 1000
BATCH = 32
LEARNING_RATE = 2e-3
EMA = 0.995
LOG_INTERVAL = 50

_SIT = {"depth": 6, "hidden_size": 192, "num_heads": 6, "patch_size": 2, "num_classes": 10}
_MMDIT = {"depth": 6, "hidden_size": 192, "num_heads": 6, "patch_size": 2, "text_dim": 768}
_CLASS_STREAM = {"class_width": 192}  # of the bundled vision encoder

SMALL: dict[str, dict[str, Any]] = {  # component -> options that --demo sets
    "SiT": _SIT,
    "DiT": _SIT,
    "DDT": _SIT,
    "DDTDiT": _SIT,
    "ClassStreamSiT": _SIT | _CLASS_STREAM,
    "ClassStreamDiT": _SIT | _CLASS_STREAM,
    "MMDiT": _MMDIT,
    "DDTMMDiT": _MMDIT,
    "ClassStreamMMDiT": _MMDIT | _CLASS_STREAM,
    "KLAutoencoder": {
        "source": "bundled",
        "subfolder": None,
        "scale": None,
        "shift": None,
        "mean": None,
        "std": None,
        "statistics": None,
    },
    "TimmEncoder": {
        "model": "bundled",
        "weights": None,
        "options": None,
        "side": None,
        "precision": "fp32",
    },
    "OpenCLIPEncoder": {
        "model": "ViT-B-32",
        "weights": "random",
        "precision": "fp32",
        "side": None,
        "sizes": {"embed_dim": 32, "width": 96, "layers": 3, "patch_size": 16},
    },
    "TextConditioner": {"encoder": {"type": "WordEncoder"}, "prompts": list(PROMPTS)},
    "SampleGrids": {
        "interval": 500,
        "rows": 10,
        "columns": 8,
        "steps": 25,
        "cfg_scale": 2.5,
        "cfg_interval": (0.0, 1.0),
    },
    "RoutingPolicy": {"interval": 500},
    "Evaluation": {
        "interval": 500,
        "metrics": ["fd:tiny-vit"],
        "best": None,
        "count": 500,
        "reference_count": 2000,
        "steps": 10,
    },
}
BLOCK_OPTIONS = (
    "tap",
    "block",
    "encoder_depth",
    "first_block",
    "last_block",
)  # options that are a block number


def make_small(cfg: dict[str, Any], *, keep_data: bool = False) -> None:
    """Turn a config into its demo, in place.

    Args:
        cfg: The config.
        keep_data: Keep the data set rather than using the drawn images.
    """
    own = cfg.pop("demo", None) or {}
    model = cfg["model"]
    depth = model["backbone"].get("depth")
    if depth is not None:
        positive_int("model.backbone.depth", depth)
    shrink(model)
    shrink(cfg.get("hooks") or {})
    model["resolution"] = RESOLUTION
    model["ema"] = EMA
    if depth:
        small = own_depth(own) or model["backbone"]["depth"]
        share = small / depth
        move_blocks(model["backbone"], depth, share)
        for section in ("alignments", "priors", "token_routing"):
            move_blocks(model.get(section) or {}, depth, share)
    loader = cfg["train_dataloader"]
    if not keep_data:
        loader["dataset"] = {"type": "ShapesDataset"}
    loader["global_batch_size"] = BATCH
    loader["num_workers"] = 0
    wrapper = cfg["optim_wrapper"]
    wrapper["optimizer"]["lr"] = LEARNING_RATE
    wrapper["precision"] = "fp32"
    wrapper["accumulative_counts"] = 1
    cfg["train_cfg"] = {"max_iters": ITERATIONS, "log_interval": LOG_INTERVAL}
    cfg["checkpoints"] = {**(cfg.get("checkpoints") or {}), "interval": 150}
    cfg["param_scheduler"] = None
    lay_over(cfg, own, "demo")


def own_depth(own: Mapping[str, Any]) -> int | None:
    """Return the depth that a config's section `demo` gives the backbone; None if it gives none."""
    section: Any = own
    for key in ("model", "backbone", "depth"):
        if not isinstance(section, Mapping):
            return None
        section = section.get(key)
    return section if is_integer(section) else None


def shrink(section: Any) -> None:
    """Apply `SMALL` to every component in a tree of dicts, in place."""
    if not isinstance(section, dict):
        return
    for value in list(section.values()):
        shrink(value)
    for key, value in SMALL.get(str(section.get("type")), {}).items():
        section[key] = copy.deepcopy(value)


def move_blocks(section: dict[str, Any], depth: int, share: float) -> None:
    """Scale the block numbers in a tree of dicts to a smaller depth, in place.

    Numbers that are no block of the full model stay, so that they are reported.

    Args:
        section: The tree.
        depth: Depth of the full model.
        share: Depth of the small model over that of the full one.
    """

    def scaled(block: Any) -> Any:
        valid = isinstance(block, int) and not isinstance(block, bool) and 1 <= block <= depth
        return max(1, int(block * share + 0.5)) if valid else block

    for key, value in section.items():
        if isinstance(value, dict):
            move_blocks(value, depth, share)
        elif key in BLOCK_OPTIONS:
            section[key] = scaled(value)
        elif key == "blocks" and isinstance(value, (list, tuple)):
            section[key] = [scaled(block) for block in value]


def lay_over(cfg: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Set nested options of a config, in place. Raises ConfigError if a section is no dict."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and "type" not in value:
            section = cfg.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{where}.{key}: {key} is {section!r} in the config, not a dict.")
            lay_over(section, value, f"{where}.{key}")
        else:
            cfg[key] = copy.deepcopy(value)
