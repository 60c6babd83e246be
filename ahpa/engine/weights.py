"""Loading trained weights from a checkpoint, a work dir, a published folder or a Hub id.

A published folder holds `model.safetensors` (a backbone), `config.json` (names of registered
components and their options) and the SHA-256 of both. Reading it executes nothing: a config that
would import modules, or names a component by a dotted path, is refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..registry import UserError
from ..registry.files import read_bounded, read_json, user_path
from ..registry.hub import hub_file
from . import checkpoint

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SUMS = "SHA256SUMS"  # as the program sha256sum writes and checks it
FORMAT = "ahpa-1"
NEEDED = ("resolution", "tokenizer", "backbone")  # keys of a config's model section
BUILT = (*NEEDED, "flow", "conditioner")  # what sampling builds
LARGEST = 1 << 20  # of the integers that describe a model
MOST_SUMS = 1 << 16  # bytes of a file of sums
MOST_PIXELS = 1 << 13  # of a side; the positions of more would not fit into memory
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
    path = user_path(source, "the run")
    if is_published(path) or is_hub_id(str(source), path):
        config, state = read_published(str(source), path)
        if config["weights"] != weights:
            raise UserError(f"{source} only holds the {config['weights']!r} weights.")
        return config["model"], state
    saved = checkpoint.load(path)
    return model_of(saved, path), backbone_of(saved, weights)


def model_of(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the model section of a checkpoint's config. Raises UserError if there is none."""
    found: Any = saved
    for key in ("meta", "config", "model"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} is not a checkpoint of a run: it has no meta.config.model.")
    return dict(found)


def backbone_of(saved: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    """Return the backbone's state dict in a checkpoint: averaged ("ema") or trained ("model").

    Raises:
        UserError: If there is none.
    """
    found = saved.get(weights)
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise UserError(f"the checkpoint has no {weights!r} weights: a dict of tensors.")
    if weights == "ema":
        return dict(found)
    prefix = "backbone."
    return {
        key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)
    }


def is_published(path: Path) -> bool:
    """Whether a folder is a published one; a work dir has no weights beside its config.json."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def is_hub_id(source: str, path: Path) -> bool:
    """Whether a source is of the form OWNER/NAME, and no file or folder here has that name."""
    shaped = source.count("/") == 1 and not source.startswith(("/", ".", "~"))
    return shaped and path.suffix != ".pth" and not path.exists() and not path.parent.is_dir()


def read_published(source: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config.json and the state dict of a published folder or Hub id.

    Raises:
        UserError: If a file is missing, damaged, or not what was published, or if the config would
            execute code.
    """
    local = is_published(path)
    hint = "There is no file or folder of that name here either."

    def find(name: str) -> Path:
        return path / name if local else hub_file(source, (name,), what="the run", hint=hint)

    files = {name: find(name) for name in (CONFIG, WEIGHTS)}
    config = read_config(source, files[CONFIG])
    try:
        state = load_file(files[WEIGHTS])
    except Exception as error:  # safetensors raises its own kinds for damaged files
        raise UserError(
            f"{source}: {WEIGHTS} is damaged or not a safetensors file ({error})."
        ) from error
    if config.get("sums") is not None:  # folders of earlier versions have none
        check_sums(source, files, find(SUMS))
    return config, state


def refuse_oversized(source: Path | str, model: Mapping[str, Any], tensors: int) -> None:
    """Check the sizes in a model section before anything is built from them.

    Args:
        source: Where it comes from, for messages.
        model: The model section.
        tensors: Number of tensors of the backbone's state dict; it has fewer blocks than those.

    Raises:
        UserError: For an integer that no model has.
    """
    pending = [(f"model.{key}", model[key]) for key in BUILT if key in model]
    while pending:
        place, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{place}.{key}", part) for key, part in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(f"{place}[{i}]", part) for i, part in enumerate(value)]
        elif isinstance(value, int):
            most = MOST_PIXELS if place == "model.resolution" else LARGEST
            most = tensors if place.endswith("depth") else most
            if abs(value) > most:
                raise UserError(f"{source} is refused: {place} is {value}, above {most}.")


def refuse_misfit(
    source: Path | str, backbone: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Check that a state dict is that of a backbone.

    Args:
        source: Where it comes from, for messages.
        backbone: The backbone's own state dict, on any device.
        state: The state dict to load into it.

    Raises:
        UserError: If names, shapes or kinds of numbers differ.
    """
    problem = ""
    names = sorted(backbone.keys() ^ state.keys())
    if names:
        problem = f"{names[0]} is {'missing' if names[0] in backbone else 'unknown'}"
    for key in () if names else backbone:
        wanted, given = backbone[key], state[key]
        if wanted.shape != given.shape:
            problem = f"{key} has the shape {tuple(given.shape)}, not {tuple(wanted.shape)}"
        elif wanted.is_floating_point() != given.is_floating_point():
            problem = f"{key} holds {given.dtype}, not {wanted.dtype}"
    if problem:
        raise UserError(f"{source}: the weights do not fit the backbone of its config: {problem}.")


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Write the SHA-256 of files of a folder beside them, as sha256sum does."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


def check_sums(source: str, files: Mapping[str, Path], sums: Path) -> None:
    """Compare files with the sums that were published with them.

    Args:
        source: Where they come from, for messages.
        files: Name -> path.
        sums: The file of sums.

    Raises:
        UserError: If the file of sums is missing or lacks a file, or if a file differs.
    """
    lines = read_bounded(sums, source, most=MOST_SUMS).decode("ascii", "replace").splitlines()
    published = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, path in files.items():
        if published.get(name) != sha256(path):
            raise UserError(
                f"{source}: {name} is not what was published (its SHA-256 is not that in {SUMS}). "
                "Get the folder again; if you changed the file on purpose, write the sums anew: "
                f"sha256sum {CONFIG} {WEIGHTS} > {SUMS}"
            )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def read_config(source: str, path: Path) -> dict[str, Any]:
    """Read and check the config.json of a published folder. Raises UserError."""
    config = read_json(path, source)
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
