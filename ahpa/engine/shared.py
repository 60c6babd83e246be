"""Trained weights by whatever name they have: a checkpoint, a run's work dir, a published folder, a hub id.

A published folder holds `model.safetensors` (a backbone) and `config.json` (plain data). Reading one executes nothing: a
config that would import modules, or that names a component by a dotted path, is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..registry import UserError
from ..registry.hub import hub_file
from . import checkpoint

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", "ahpa-1"
NEEDED = ("resolution", "tokenizer", "backbone")  # of a config's model
IMPORTS = ("custom_imports", "_import_", "_base_", "auto_map", "trust_remote_code")  # keys that lead to code


def read_run(source: Path | str, weights: str = "ema") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """-> (the config of the model, the backbone's state dict). weights: 'ema', or 'model' for the raw ones.

    UserError where there is nothing of that name, for damaged files and for what would execute code.
    """
    if weights not in ("ema", "model"):
        raise UserError(f"weights: 'ema' or 'model', got {weights!r}.")
    path = Path(source).expanduser()
    if is_published(path) or is_hub_id(str(source), path):
        config, state = read_published(str(source), path)
        if config["weights"] != weights:
            raise UserError(f"{source} holds the {config['weights']!r} weights only, not {weights!r}.")
        return config["model"], state
    saved = checkpoint.load(path)
    return dict(saved["meta"]["config"]["model"]), backbone_of(saved, weights)


def backbone_of(saved: Mapping, weights: str) -> dict[str, Tensor]:
    """The backbone's state dict in a checkpoint: the average ('ema') or the raw weights ('model')."""
    if weights == "ema":
        return saved["ema"]
    return {key.removeprefix("backbone."): v for key, v in saved["model"].items() if key.startswith("backbone.")}


def is_published(path: Path) -> bool:
    """Whether a folder is a published one: a run's work dir has a config.json too, but no weights beside it."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def is_hub_id(source: str, path: Path) -> bool:
    """OWNER/NAME, of which nothing lies here."""
    shaped = source.count("/") == 1 and not source.startswith(("/", ".", "~")) and path.suffix != ".pth"
    return shaped and not path.exists() and not path.parent.is_dir()


def read_published(source: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """-> (config.json, the state dict) of a published folder or hub id."""
    if is_published(path):
        files = path / CONFIG, path / WEIGHTS
    else:
        hint = "There is no file or folder of that name here either."
        files = tuple(hub_file(source, (name,), what="the run", hint=hint) for name in (CONFIG, WEIGHTS))
    try:
        config = json.loads(files[0].read_text())
        found = config.get("format") if isinstance(config, dict) else None
    except ValueError as error:
        raise UserError(f"{source}: {CONFIG} cannot be read ({error}).") from error
    if found != FORMAT:
        raise UserError(f"{source}: {CONFIG} has the format {found!r}; this version of ahpa reads {FORMAT!r}.")
    refuse_code(config, source)
    model = config.get("model")
    lacking = [key for key in NEEDED if not isinstance(model, dict) or key not in model]
    if lacking or "weights" not in config:
        missing = f"model.{lacking[0]}" if lacking else "weights"
        raise UserError(f"{source}: {CONFIG} lacks {missing!r}; was it written by tools/publish.py?")
    try:
        return config, load_file(files[1])
    except Exception as error:  # safetensors raises its own kinds for damaged files
        raise UserError(f"{source}: {WEIGHTS} is damaged or no safetensors file ({error}).") from error


def refuse_code(value: Any, source: str, where: str = "") -> None:
    """UserError for the first key or type, at any depth, that would import modules."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            place = f"{where}.{key}".strip(".")
            dotted = key == "type" and isinstance(part, str) and not part.removeprefix("ahpa.").isidentifier()
            if key in IMPORTS or dotted:
                raise UserError(f"{source} is refused: {place} = {part!r} in its {CONFIG} would execute code. If you trust "
                                "it, install its components as a plugin and remove that entry.")  # fmt: skip
            refuse_code(part, source, place)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            refuse_code(part, source, f"{where}[{number}]")
