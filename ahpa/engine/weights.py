"""Loading trained weights from a checkpoint, a work dir, a published folder or a Hub id.

A published folder holds `model.safetensors` (a backbone) and `config.json` (plain data). Reading it
executes nothing: a config that would import modules, or names a component by a dotted path, is
refused.
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

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "ahpa-1"
NEEDED = ("resolution", "tokenizer", "backbone")  # keys of a config's model section
IMPORTS = ("custom_imports", "_import_", "_base_", "auto_map", "trust_remote_code")


NORMALISATION = ("scale", "shift", "mean", "std", "statistics")  # options of KLAutoencoder


def with_autoencoder(tokenizer: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a tokenizer's config with another autoencoder.

    How the latents are normalised belongs to the model that is trained on them, so it stays.

    Args:
        tokenizer: Config of the model's tokenizer.
        source: The other autoencoder: "bundled", a folder, a file or a Hub id.
    """
    kept = {key: tokenizer[key] for key in NORMALISATION if tokenizer.get(key) is not None}
    return {"type": "KLAutoencoder", "source": source, **kept}


def read_run(source: Path | str, weights: str = "ema") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a trained backbone.

    Args:
        source: A checkpoint, a run's work dir, a published folder or a Hub id.
        weights: "ema" for the averaged weights, "model" for the trained ones.

    Returns:
        The config's model section, and the backbone's state dict.

    Raises:
        UserError: If there is nothing of this name, a file is damaged, or its config would execute
            code.
    """
    if weights not in ("ema", "model"):
        raise UserError(f"weights: must be 'ema' or 'model', got {weights!r}.")
    path = Path(source).expanduser()
    if is_published(path) or is_hub_id(str(source), path):
        config, state = read_published(str(source), path)
        if config["weights"] != weights:
            raise UserError(f"{source} only holds the {config['weights']!r} weights.")
        return config["model"], state
    saved = checkpoint.load(path)
    return dict(saved["meta"]["config"]["model"]), backbone_of(saved, weights)


def backbone_of(saved: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    """Return the backbone's state dict in a checkpoint: averaged ("ema") or trained ("model")."""
    if weights == "ema":
        return saved["ema"]
    prefix = "backbone."
    return {
        key.removeprefix(prefix): value
        for key, value in saved["model"].items()
        if key.startswith(prefix)
    }


def is_published(path: Path) -> bool:
    """Whether a folder is a published one; a work dir has no weights beside its config.json."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def is_hub_id(source: str, path: Path) -> bool:
    """Whether a source is of the form OWNER/NAME, and no file or folder here has that name."""
    shaped = source.count("/") == 1 and not source.startswith(("/", ".", "~"))
    return shaped and path.suffix != ".pth" and not path.exists() and not path.parent.is_dir()


def read_published(source: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config.json and the state dict of a published folder or Hub id. Raises UserError."""
    if is_published(path):
        config_file, weights_file = path / CONFIG, path / WEIGHTS
    else:
        hint = "There is no file or folder of that name here either."
        config_file, weights_file = (
            hub_file(source, (name,), what="the run", hint=hint) for name in (CONFIG, WEIGHTS)
        )
    config = read_config(source, config_file)
    try:
        return config, load_file(weights_file)
    except Exception as error:  # safetensors raises its own kinds for damaged files
        raise UserError(
            f"{source}: {WEIGHTS} is damaged or not a safetensors file ({error})."
        ) from error


def read_config(source: str, path: Path) -> dict[str, Any]:
    """Read and check the config.json of a published folder. Raises UserError."""
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{source}: {CONFIG} cannot be read ({error}).") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{source}: {CONFIG} has the format {found!r}; this version of ahpa reads {FORMAT!r}."
        )
    refuse_code(config, source)
    model = config.get("model")
    missing = [f"model.{key}" for key in NEEDED if not isinstance(model, dict) or key not in model]
    if "weights" not in config:
        missing.append("weights")
    if missing:
        raise UserError(f"{source}: {CONFIG} lacks {missing[0]!r}; was it written by ahpa publish?")
    return config


def refuse_code(value: Any, source: str, where: str = "") -> None:
    """Raise UserError for the first key or type, at any depth, that would import modules."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            place = f"{where}.{key}".strip(".")
            name = part.removeprefix("ahpa.") if isinstance(part, str) else ""
            dotted = key == "type" and isinstance(part, str) and not is_plain_name(name)
            if key in IMPORTS or dotted:
                raise UserError(
                    f"{source} is refused: {place} = {part!r} in its {CONFIG} would execute code. "
                    "If you trust it, install its components as a plugin and remove that entry."
                )
            refuse_code(part, source, place)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            refuse_code(part, source, f"{where}[{number}]")


def is_plain_name(name: str) -> bool:
    """Whether a component's name is a registered one such as "SiT" or "classifier-free"."""
    return name.replace("-", "_").isidentifier()
