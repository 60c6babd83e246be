"""A run as a folder to share: the averaged backbone as safetensors, config.json, and a model card with the protocol and
the figures. tools/sample.py and `Generator.load` read the folder, or the hub id that it was uploaded as.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import __version__
from ..engine import checkpoint
from ..engine.denoiser import CONDITIONER
from ..engine.shared import CONFIG, FORMAT, WEIGHTS, backbone_of, refuse_code
from ..registry import CONDITIONERS

PRIVATE = ("custom_imports", "work_dir", "launcher", "default_scope", "visualizer")  # code, and what one machine had
PLACES = ("root", "images", "annotations")  # options of data sets that are paths


def publish(source: Path, target: Path, *, weights: str = "ema", vae: str | None = None, license: str | None = None,
            figures: Sequence[str] = ()) -> list[str]:  # fmt: skip
    """Writes the newest checkpoint of a work dir, or the given one, as a folder -> notes for a person.

    vae: what readers shall decode with, in place of the run's own. figures: lines of measured figures, each with its
    protocol, for the card. UserError where there is no checkpoint and where `target` exists.
    """
    saved = checkpoint.load(source)
    config, iteration = dict(saved["meta"]["config"]), saved["meta"]["iteration"]
    model = dict(config.pop("model"))
    if vae:
        model["tokenizer"] = dict(type="KLAutoencoder", source=vae)
    state = {key: value.contiguous() for key, value in backbone_of(saved, weights).items()}
    modules = (config.get("custom_imports") or {}).get("imports", ())
    training = {key: value for key, value in config.items() if key not in PRIVATE}
    without_places(training)
    described = dict(format=FORMAT, ahpa=__version__, weights=weights, iteration=iteration, seed=saved["meta"]["seed"],
                     imported=saved["meta"].get("imported", {}).get("layout"), model=model, training=training)  # fmt: skip
    refuse_code(described, str(source))
    work_dir = Path(source) if Path(source).is_dir() else Path(source).parent.parent
    logged, grid = last_figures(work_dir, iteration), work_dir / "samples" / f"iter_{iteration:09d}.png"
    target = Path(target)
    with checkpoint.whole_folder(target) as folder:
        save_file(state, folder / WEIGHTS, metadata=dict(format="pt"))
        (folder / WEIGHTS).chmod(0o644)
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        if grid.is_file():
            shutil.copyfile(grid, folder / "samples.png")
        text = card(described, state, logged, figures, name=target.name, license=license, grid=grid.is_file(),
                    modules=modules)  # fmt: skip
        (folder / "README.md").write_text(text)
    return notes(model, modules)


def without_places(training: dict) -> None:
    """Leaves the paths of a data set on one machine out, in place."""
    loader = training.get("train_dataloader")
    if isinstance(loader, Mapping):
        dataset = {key: value for key, value in loader.get("dataset", {}).items() if key not in PLACES}
        training["train_dataloader"] = {**loader, "dataset": dataset}


def last_figures(work_dir: Path, iteration: int) -> dict[str, float]:
    """The last log line up to an iteration; {} where the log is not beside the checkpoint. A line that a kill cut off is
    passed over."""
    path = work_dir / "scalars.json"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.is_file() else []
    )
    before = [record for record in map(json.loads, whole) if record["iteration"] <= iteration]
    return before[-1] if before else {}


def notes(model: Mapping, modules: Sequence[str]) -> list[str]:
    """What the readers of the folder will miss."""
    found = [f"config.json names {where} = {value!r}, a path of this machine" for where, value in paths(model, "model")]
    if any(line.startswith("config.json names model.tokenizer") for line in found):
        found.append("readers need an autoencoder of their own: name a hub id by --vae.")
    if modules:
        found.append(f"the run used components of {', '.join(modules)}: readers need them as an installed plugin if the "
                     "backbone, the autoencoder or the conditioner is one of them.")  # fmt: skip
    return found


def paths(value: Any, where: str) -> list[tuple[str, str]]:
    """(place in the config, text) of every text that is a path here."""
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in paths(part, f"{where}.{key}")]
    if isinstance(value, (list, tuple)):
        return [pair for number, part in enumerate(value) for pair in paths(part, f"{where}[{number}]")]
    local = isinstance(value, str) and "/" in value and Path(value).expanduser().exists()
    return [(where, value)] if local else []


def card(described: dict, state: dict, logged: dict, figures: Sequence[str], *, name: str, license: str | None, grid: bool,
         modules: Sequence[str]) -> str:  # fmt: skip
    """The README of the folder: what it is, how to use it, the protocol, the figures."""
    model, training = described["model"], described["training"]
    prompts, picture = conditioned_on(model) == "prompts", "\n![samples](samples.png)\n" if grid else ""
    protocol = protocol_of(described, model, training) | ({"components from": ", ".join(modules)} if modules else {})
    return f"""---
library_name: ahpa
pipeline_tag: {"text-to-image" if prompts else "unconditional-image-generation"}
tags: [diffusion-transformer, representation-alignment]
{f"license: {license}" if license else "# no license was stated"}
---
# {name}

A {backbone_text(model)} of {sum(value.numel() for value in state.values()) / 1e6:.1f} M parameters at
{model["resolution"]} px, {history(described)}.
These are the {"averaged (EMA)" if described["weights"] == "ema" else "raw"} weights.
{picture}
## Use

    python tools/sample.py {name} --num 16 --cfg-scale 1.5 --out samples.png

    from ahpa.engine.inference import Generator
    images = Generator.load("{name}").sample({
        ["a red circle"] if prompts else [0, 1]
    }, cfg_scale=1.5)  # uint8 [n, 3, H, W]

Nothing in this folder is executed: `config.json` is data and the weights are safetensors.

## Alignment

{lines(alignment_lines(model))}

## Protocol

{lines(f"- {key}: {value}" for key, value in protocol.items())}

## Figures

{lines(f"- {line}" for line in figures) or "No quality figure (FID or another) was given for this run."}
{log_table(logged)}"""


def history(described: Mapping) -> str:
    """Trained for how long, or imported from what."""
    iteration, training = described["iteration"], described["training"]
    if described["imported"]:
        return f"imported by ahpa {described['ahpa']} from a checkpoint of the layout {described['imported']!r}"
    batch = training.get("train_dataloader", {}).get("global_batch_size", 0)
    seen = f"{iteration * batch:,} images seen in batches of {batch}"
    return f"trained with ahpa {described['ahpa']} for {iteration:,} iterations ({seen})"


def conditioned_on(model: Mapping) -> str:
    """'classes' or 'prompts'."""
    return CONDITIONERS.get((model.get("conditioner") or CONDITIONER)["type"]).takes


def lines(found) -> str:
    return "\n".join(found)


def log_table(logged: dict) -> str:
    """The training log's last line as a table; '' where there is none."""
    shown = {key: value for key, value in logged.items() if key not in ("time", "iteration")}
    if not shown:
        return ""
    rows = lines(f"| {key} | {value:.6g} |" for key, value in shown.items())
    return f"""
The training log's last line, iteration {logged["iteration"]:,} (means since the line before):

| what | value |
|---|---|
{rows}
"""


def backbone_text(model: Mapping) -> str:
    """'SiT (depth 12, hidden_size 768, ...)'."""
    own = model["backbone"]
    return f"{own['type']} ({', '.join(f'{key} {value}' for key, value in own.items() if key != 'type')})"


def alignment_lines(model: Mapping) -> list[str]:
    """One line an alignment: block, prior, router, projector, criteria, weight."""
    found = []
    for name, own in (model.get("alignments") or {}).items():
        prior = (model.get("priors") or {}).get(own.get("source"), {})
        criteria = ", ".join(part["type"] for part in (own.get("criteria") or {}).values()) or "CosineLoss"
        parts = [f"block {own.get('tap')}", *([f"prior {text(prior)}"] if prior else [])]
        parts += [f"{key} {text(own[key])}" for key in ("router", "projector") if own.get(key)]
        found.append(f"- **{name}**: {'; '.join([*parts, criteria])}; weight {text(own.get('weight', 1.0))}")
    return found or ["None: the backbone was trained on the flow's loss alone."]


def text(value: Any) -> str:
    """A component as Type(option=value, ...)."""
    if not isinstance(value, Mapping):
        return str(value)
    options = ", ".join(f"{key}={text(part)}" for key, part in value.items()
                        if key != "type" and part is not None)  # fmt: skip
    return f"{value.get('type', '')}({options})"


def protocol_of(described: dict, model: Mapping, training: Mapping) -> dict[str, Any]:
    """What a comparison needs to know; of an imported checkpoint only the model's side."""
    loader, wrapper = training.get("train_dataloader", {}), training.get("optim_wrapper", {})
    found = {
        "data": text(loader["dataset"]) if loader else None,
        "autoencoder": text(model["tokenizer"]),
        "flow": text(model.get("flow") or "Flow()"),
        "flow loss": text(model.get("flow_loss") or "FlowMatchingLoss()"),
        "condition": text(model.get("conditioner") or "ClassLabels()"),
        "optimiser": text(wrapper["optimizer"]) if wrapper else None,
        "gradient clipping": str(wrapper.get("clip_grad")) if wrapper else None,
        "precision": wrapper.get("precision"),
        "EMA decay": model.get("ema"),
        "seed": described["seed"] if loader else None,
        "published with": f"ahpa {described['ahpa']}, torch {torch.__version__}",
    }
    return {key: value for key, value in found.items() if value is not None}
