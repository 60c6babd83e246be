"""A run as a folder to share: the backbone as safetensors, config.json, and a model card with the
protocol and the figures. The folder, or the Hub id it is uploaded as, can be sampled from."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import __version__
from ..engine import checkpoint
from ..engine.assembly import DEFAULTS
from ..engine.weights import (
    CONFIG,
    FORMAT,
    SUMS,
    WEIGHTS,
    backbone_of,
    model_of,
    refuse_code,
    with_autoencoder,
    write_sums,
)
from ..registry import CONDITIONERS
from ..registry.errors import printable
from ..registry.files import whole_folder

PRIVATE = ("custom_imports", "work_dir", "launcher", "default_scope", "visualizer")
"""Keys of a config that name code, or what only one machine has."""
PLACES = ("root", "images", "annotations")  # options of datasets that are paths
GRID = "samples.png"


# ---- the folder -----------------------------------------------------------------------------


def publish(
    source: Path,
    target: Path,
    *,
    weights: str = "ema",
    vae: str | None = None,
    license: str | None = None,
    figures: Sequence[str] = (),
) -> list[str]:
    """Write a checkpoint, the newest one of a work dir, as a folder to share.

    Args:
        source: A checkpoint or a work dir.
        target: The folder to write, which must not exist.
        weights: "ema" or "model".
        vae: Autoencoder for readers to decode with, instead of the run's own.
        license: License for the card.
        figures: Measured figures for the card, each with its protocol.

    Returns:
        Notes for a person on what readers will lack.

    Raises:
        UserError: If there is no checkpoint, or if `target` exists.
    """
    source, target = Path(source), Path(target)
    saved = checkpoint.load(source)
    model = model_of(saved, source)
    meta = saved["meta"]
    config = {key: value for key, value in meta["config"].items() if key != "model"}
    if vae:
        model["tokenizer"] = with_autoencoder(model["tokenizer"], vae)
    state = {key: value.contiguous() for key, value in backbone_of(saved, weights).items()}
    modules = (config.get("custom_imports") or {}).get("imports", ())
    described = {
        "format": FORMAT,
        "ahpa": __version__,
        "weights": weights,
        "iteration": meta["iteration"],
        "seed": meta["seed"],
        "imported": meta.get("imported", {}).get("layout"),
        "model": model,
        "training": training_of(config),
        "sums": SUMS,
    }
    refuse_code(described, str(source))
    work_dir = source if source.is_dir() else source.parent.parent
    grid = work_dir / "samples" / f"iter_{meta['iteration']:09d}.png"
    content = Card(
        name=target.name,
        described=described,
        parameters=sum(value.numel() for value in state.values()),
        logged=last_figures(work_dir, meta["iteration"]),
        figures=figures,
        license=license,
        has_grid=grid.is_file(),
        modules=modules,
    )
    with whole_folder(target) as folder:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        if content.has_grid:
            shutil.copyfile(grid, folder / GRID)
        (folder / "README.md").write_text(content.text())
        grids = [GRID] if content.has_grid else []
        write_sums(folder, [CONFIG, WEIGHTS, *grids])
    return notes(model, modules)


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's training sections without what only one machine has."""
    training = {key: value for key, value in config.items() if key not in PRIVATE}
    loader = training.get("train_dataloader")
    if isinstance(loader, Mapping):
        dataset = loader.get("dataset", {})
        public = {key: value for key, value in dataset.items() if key not in PLACES}
        training["train_dataloader"] = {**loader, "dataset": public}
    return training


def last_figures(work_dir: Path, iteration: int) -> dict[str, float]:
    """Read the last complete line of a run's log up to an iteration; {} if there is no log."""
    path = work_dir / "scalars.json"
    if not path.is_file():
        return {}
    records = (record_of(line) for line in path.read_bytes().splitlines())
    before = [record for record in records if record and record["iteration"] <= iteration]
    return before[-1] if before else {}


def record_of(line: bytes) -> dict[str, float]:
    """Return a record of a run's log; {} for a spoilt line, such as one that a kill cut."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    numbers = isinstance(record, dict) and all(
        isinstance(value, (int, float)) for value in record.values()
    )
    return record if numbers and "iteration" in record else {}


def notes(model: Mapping[str, Any], modules: Sequence[str]) -> list[str]:
    """List what the readers of a folder will lack.

    Args:
        model: The config's model section.
        modules: Modules that the run imported components from.
    """
    local = local_paths(model, "model")
    found = [
        f"config.json names {place} = {value!r}, a path of this machine" for place, value in local
    ]
    if any(place.startswith("model.tokenizer") for place, _ in local):
        found.append("readers need an autoencoder of their own: name a Hub id with --vae.")
    if modules:
        found.append(
            f"the run used components of {', '.join(modules)}: readers need them as an installed "
            "plugin if the backbone, the autoencoder or the conditioner is one of them."
        )
    return found


def local_paths(value: Any, place: str) -> list[tuple[str, str]]:
    """List (place in the config, text) of every text that is an existing path here."""
    if isinstance(value, Mapping):
        parts = [local_paths(part, f"{place}.{key}") for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [local_paths(part, f"{place}[{i}]") for i, part in enumerate(value)]
    elif isinstance(value, str) and "/" in value and Path(value).expanduser().exists():
        parts = [[(place, value)]]
    else:
        parts = []
    return [pair for part in parts for pair in part]


# ---- the model card -------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What the model card says.

    Attributes:
        name: Name of the folder.
        described: Content of config.json.
        parameters: Number of parameters of the backbone.
        logged: Last line of the training log; may be empty.
        figures: Lines of measured figures.
        license: License, if stated.
        has_grid: Whether there is a picture of samples.
        modules: Modules that the run imported components from.
    """

    name: str
    described: Mapping[str, Any]
    parameters: int
    logged: Mapping[str, float]
    figures: Sequence[str]
    license: str | None
    has_grid: bool
    modules: Sequence[str]

    def text(self) -> str:
        """Return the README: what it is, how to use it, the protocol, the figures."""
        model = self.described["model"]
        prompts = conditioned_on(model) == "prompts"
        task = "text-to-image" if prompts else "unconditional-image-generation"
        wanted: Sequence[str | int] = ["a red circle"] if prompts else [0, 1]
        classes = model.get("classes") or ()
        if len(classes) > 1:
            wanted = [printable(name) for name in classes[:2]]
        license_line = f"license: {self.license}" if self.license else "# no license was stated"
        size = f"{self.parameters / 1e6:.1f} M parameters at {model['resolution']} px"
        kind = "averaged (EMA)" if self.described["weights"] == "ema" else "raw"
        picture = f"\n![samples]({GRID})\n" if self.has_grid else ""
        protocol = [f"- {key}: {value}" for key, value in self.protocol().items()]
        figures = [f"- {line}" for line in self.figures]
        no_figures = "No quality figure (FID or another) was given for this run."
        return f"""---
library_name: ahpa
pipeline_tag: {task}
tags: [diffusion-transformer, representation-alignment]
{license_line}
---
# {self.name}

A {backbone_text(model)} of {size}, {self.history()}.
These are the {kind} weights.
{picture}
## Use

    ahpa sample {self.name} --num 16 --cfg-scale 1.5 --out samples.png

    from ahpa.engine.inference import load_generator
    generator = load_generator("{self.name}")
    images = generator.sample({wanted}, cfg_scale=1.5)  # uint8 [n, 3, H, W]

Reading this folder executes nothing: `config.json` names components of ahpa and their options, and
the weights are safetensors. `{SUMS}` holds the SHA-256 of both, and ahpa checks them.

## Alignment

{lines(alignment_lines(model))}

## Protocol

{lines(protocol)}

## Figures

{lines(figures) or no_figures}
{self.log_table()}"""

    def history(self) -> str:
        """Describe for how long it was trained, or what it was imported from."""
        described = self.described
        version = described["ahpa"]
        if described["imported"]:
            layout = described["imported"]
            return f"imported by ahpa {version} from a checkpoint of the layout {layout!r}"
        iteration = described["iteration"]
        loader = described["training"].get("train_dataloader", {})
        batch = loader.get("global_batch_size", 0)
        seen = f"{iteration * batch:,} images seen in batches of {batch}"
        return f"trained with ahpa {version} for {iteration:,} iterations ({seen})"

    def protocol(self) -> dict[str, Any]:
        """Return what a comparison needs to know; for an import only the model's side."""
        described = self.described
        model, training = described["model"], described["training"]
        loader = training.get("train_dataloader", {})
        wrapper = training.get("optim_wrapper", {})
        found = {
            "data": component_text(loader["dataset"]) if loader else None,
            "autoencoder": component_text(model["tokenizer"]),
            "flow": component_text(part_of(model, "flow")),
            "flow loss": component_text(part_of(model, "flow_loss")),
            "condition": component_text(part_of(model, "conditioner")),
            "classes": classes_text(model.get("classes") or ()),
            "optimiser": component_text(wrapper["optimizer"]) if wrapper else None,
            "gradient clipping": str(wrapper.get("clip_grad")) if wrapper else None,
            "precision": wrapper.get("precision"),
            "EMA decay": model.get("ema"),
            "seed": described["seed"] if loader else None,
            "published with": f"ahpa {described['ahpa']}, torch {torch.__version__}",
            "components from": ", ".join(self.modules) or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def log_table(self) -> str:
        """Return the training log's last line as a table, or ''."""
        hidden = ("time", "iteration")
        shown = {key: value for key, value in self.logged.items() if key not in hidden}
        if not shown:
            return ""
        rows = [f"| {key} | {value:.6g} |" for key, value in shown.items()]
        iteration = self.logged["iteration"]
        return f"""
The training log's last line, iteration {iteration:,} (means since the line before):

| what | value |
|---|---|
{lines(rows)}
"""


def classes_text(classes: Sequence[str]) -> str | None:
    """Describe the classes, such as "10 (fish, house, ...)"; None if they have no names."""
    shown = [printable(name) for name in classes[:20]] + ["..."] * (len(classes) > 20)
    return f"{len(classes)} ({', '.join(shown)})" if classes else None


def part_of(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the config of a part, or its default."""
    return model.get(key) or DEFAULTS[key]


def conditioned_on(model: Mapping[str, Any]) -> str:
    """Return "classes" or "prompts"."""
    return CONDITIONERS.get(part_of(model, "conditioner")["type"]).takes


def lines(found: Iterable[str]) -> str:
    """Join lines."""
    return "\n".join(found)


def backbone_text(model: Mapping[str, Any]) -> str:
    """Describe a backbone, such as "SiT (depth 12, hidden_size 768)"."""
    own = model["backbone"]
    options = [f"{key} {value}" for key, value in own.items() if key != "type"]
    return f"{own['type']} ({', '.join(options)})"


def alignment_lines(model: Mapping[str, Any]) -> list[str]:
    """Describe each alignment in a line: its type, its prior, and every option that is set."""
    priors = model.get("priors") or {}
    found = []
    for name, own in (model.get("alignments") or {}).items():
        parts = [own.get("type", "Alignment")]
        if own.get("source") in priors:
            parts.append(f"prior {component_text(priors[own['source']])}")
        for key, value in own.items():
            if key not in ("type", "source", "criteria") and value is not None:
                label = "block" if key == "tap" else key
                parts.append(f"{label} {component_text(value)}")
        criteria = [component_text(part) for part in (own.get("criteria") or {}).values()]
        parts += [f"criteria {', '.join(criteria)}"] if criteria else []
        found.append(f"- **{name}**: {'; '.join(parts)}")
    return found or ["None: the backbone was trained on the flow's loss alone."]


def component_text(value: Any) -> str:
    """Write a component as Type(option=value, ...); other values as they print."""
    if not isinstance(value, Mapping):
        return str(value)
    options = [
        f"{key}={component_text(part)}"
        for key, part in value.items()
        if key != "type" and part is not None
    ]
    return f"{value.get('type', '')}({', '.join(options)})"
