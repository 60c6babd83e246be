"""Loading a run to look into it: the trained network with its alignments, priors and images.

A run is a work dir, a checkpoint or a published folder; a config stands for the network before its
first step. Nothing that comes with weights is executed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..engine import checkpoint
from ..engine.assembly import build_model
from ..engine.config_file import parse_value
from ..engine.denoiser import AlignedDenoiser
from ..engine.weights import WEIGHTS as WEIGHT_FILE
from ..engine.weights import (
    is_hub_id,
    is_published,
    model_of,
    read_published,
    refuse_misfit,
    refuse_oversized,
    sha256,
)
from ..registry import DATASETS, ConfigError, UserError, build
from ..registry.contracts import Clean, Condition, Dataset, Noised, Tap, TargetView
from ..registry.files import user_path
from ..registry.seeds import mix_seed
from ..registry.values import Progress

WEIGHTS = ("ema", "model")
ALIGNMENTS = "alignments."  # beginning of the keys of heads and routers in a state dict


@dataclass(frozen=True)
class Source:
    """What a run holds, before any network is built.

    Attributes:
        name: The work dir's, file's or config's name.
        model: The config's model section.
        config: The whole config, as far as a published folder tells it.
        state: The trained network's state dict; empty before training. A published folder has
            that of the backbone alone.
        average: The averaged backbone's state dict; empty before training.
        iteration: Optimiser steps done.
        seed: Seed of the run.
        path: The weight file; None before training.
        weights: "ema" or "model" if there is only one kind, as in a published folder.
    """

    name: str
    model: dict[str, Any]
    config: dict[str, Any]
    state: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    iteration: int
    seed: int
    path: Path | None
    weights: str | None = None

    @property
    def method(self) -> str:
        """The config's name, or that of the run if it is not recorded."""
        return str(self.config.get("method") or self.name)


@dataclass(frozen=True)
class Run:
    """A network to look into, in eval mode, with its frozen parts loaded.

    Attributes:
        source: Where it comes from.
        net: The network.
        dataset: Where images come from.
        weights: "ema", "model" or "untrained".
        record: What identifies the run in a result.
    """

    source: Source
    net: AlignedDenoiser
    dataset: Dataset
    weights: str
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.source.name

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.parts.device

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        train = self.source.config.get("train_cfg") or {}
        most = max(int(train.get("max_iters", 1)), self.source.iteration, 1)
        return Progress(min(self.source.iteration, most - 1), most)


def config_source(path: Path, config: dict[str, Any]) -> Source:
    """Return a config as a run before its first step."""
    seed = (config.get("randomness") or {}).get("seed", 0)
    return Source(path.stem, config["model"], config, {}, {}, 0, seed, None)


def run_source(path: str | Path) -> Source:
    """Read a work dir (its newest checkpoint), a checkpoint, a published folder or a Hub id.

    Raises:
        UserError: If there is nothing of this name, or it is damaged.
    """
    place = user_path(path, "the run")
    if is_published(place) or is_hub_id(str(path), place):
        return published_source(str(path))
    file = checkpoint.file_of(place)
    saved = checkpoint.load(file)
    model = model_of(saved, file)
    meta = saved["meta"]
    name = file.resolve().parent.parent.name if file.parent.name == "checkpoints" else file.stem
    refuse_oversized(path, model, len(saved["ema"]))
    return Source(
        name=name,
        model=model,
        config=dict(meta["config"]),
        state=saved["model"],
        average=saved["ema"],
        iteration=int(meta["iteration"]),
        seed=int(meta.get("seed", 0)),
        path=file,
    )


def published_source(place: str) -> Source:
    """Read a published folder or Hub id, which holds one kind of weights of the backbone alone."""
    config, state = read_published(place, Path(place).expanduser())
    model, kind = config["model"], config["weights"]
    refuse_oversized(place, model, len(state))
    found = config.get("training")
    training = dict(found) if isinstance(found, Mapping) else {}
    own = {f"backbone.{key}": value for key, value in state.items()}
    path = Path(place).expanduser() / WEIGHT_FILE
    return Source(
        name=path.parent.name,
        model=model,
        config={**training, "model": model},
        state=own,
        average=state,
        iteration=int(config.get("iteration") or 0),
        seed=0,
        path=path if path.is_file() else None,
        weights=kind,
    )


# ---- networks -------------------------------------------------------------------------------


def parse_prior(option: str) -> tuple[str, dict[str, Any]]:
    """Parse --prior NAME=CONFIG, such as vae=dict(type='VAETaps') or teacher=TimmEncoder.

    Raises:
        ConfigError: If it has another form.
    """
    name, equals, text = option.partition("=")
    value = parse_value(text) if equals else None
    value = {"type": value} if isinstance(value, str) and value.isidentifier() else value
    if not name.isidentifier() or not isinstance(value, dict) or "type" not in value:
        raise ConfigError(
            f"--prior: must be NAME=CONFIG, such as \"teacher=dict(type='TimmEncoder')\", got "
            f"{option!r}."
        )
    return name, value


def open_run(
    source: Source,
    *,
    weights: str = "ema",
    data: str | None = None,
    priors: Mapping[str, Any] | None = None,
    heads: Source | None = None,
    drop_alignments: bool = False,
) -> Run:
    """Build the network of a run and load its weights and frozen parts.

    Args:
        source: The run.
        weights: "ema" for the averaged backbone, "model" for the trained one. Heads and routers
            have no average.
        data: Class folders or a zip of them; None for the run's own data set.
        priors: {name: config} of priors that are added, or replace the run's.
        heads: A run whose alignments, with their routers, projectors and priors, replace the run's.
        drop_alignments: Leave the run's alignments out, and keep all priors.

    Raises:
        UserError: If weights, data or parts are missing or do not fit.
    """
    section = dict(source.model)
    section["priors"] = dict(section.get("priors") or {})
    if heads is not None:
        section["priors"] |= dict(heads.model.get("priors") or {})
        section["alignments"] = dict(heads.model.get("alignments") or {})
    if drop_alignments:
        section["alignments"] = {}
    section["priors"] |= dict(priors or {})
    torch.manual_seed(source.seed)
    net = build_model(section)
    kind = "untrained"
    if source.state:
        kind = source.weights or weights
        load_weights(net, source, source if heads is None else heads, kind)
    elif heads is not None:
        load_heads(net, heads)
    dataset = open_data(source, net.geometry.resolution, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.parts.load()
    net.to(device)
    net.parts.to(device)
    net.parts.check_scale = False
    net.eval()
    record = run_record(source, kind)
    if heads is not None:
        record["heads"] = run_record(heads, "model")
    if priors:
        record["priors"] = {name: dict(prior) for name, prior in priors.items()}
    return Run(source, net, dataset, kind, record)


def load_weights(net: AlignedDenoiser, source: Source, heads: Source, weights: str) -> None:
    """Load a backbone from one run, and heads and routers from the same or another one.

    Raises:
        UserError: If something does not fit.
    """
    if weights == "ema":
        backbone = dict(source.average)
    else:
        own = source.state.items()
        backbone = {k.removeprefix("backbone."): v for k, v in own if k.startswith("backbone.")}
    refuse_misfit(source.name, net.backbone.state_dict(), backbone)
    net.backbone.load_state_dict(backbone)
    average = net.parts.ema.backbone
    average.load_state_dict(dict(source.average) if source.average else backbone)
    load_heads(net, heads)


def load_heads(net: AlignedDenoiser, heads: Source) -> None:
    """Load the projectors, routers and criteria of a run. Raises UserError if they do not fit."""
    wanted = net.alignments.state_dict()
    found = {
        key.removeprefix(ALIGNMENTS): value
        for key, value in heads.state.items()
        if key.startswith(ALIGNMENTS)
    }
    if not wanted:
        return
    if not heads.state:
        raise UserError(f"--heads: {heads.name} is untrained; name a run or a checkpoint.")
    try:
        refuse_misfit(heads.name, wanted, found)
    except UserError as error:
        raise UserError(
            f"the heads of {heads.name} do not fit this backbone and these priors ({error}) A "
            "prior that is swapped in needs the channels that the heads were trained with."
        ) from error
    net.alignments.load_state_dict(found)


def want_all_levels(net: AlignedDenoiser) -> None:
    """Let every prior give all its maps and vectors, not only those that alignments read.

    Attention logits are left out unless an alignment reads them.
    """
    parts = net.parts
    for name, prior in parts.priors.items():
        read = parts.wanted[name]
        levels = prior.levels.items()
        parts.wanted[name] = tuple(n for n, spec in levels if not spec.attention or n in read)


def run_record(source: Source, weights: str) -> dict[str, Any]:
    """Return what identifies a run in a result."""
    return {
        "run": source.name,
        "method": source.method,
        "iteration": source.iteration,
        "weights": weights,
        "training_seed": source.seed,
        "checkpoint_sha256": None if source.path is None else sha256(source.path),
    }


# ---- images ---------------------------------------------------------------------------------


def open_data(source: Source, resolution: int, data: str | None) -> Dataset:
    """Open class folders, or the data set of a run. Raises UserError if there is none."""
    if data is not None:
        where, section = "--data", {"type": "ImageFolder", "root": data}
    else:
        where = "train_dataloader.dataset"
        section = dict((source.config.get("train_dataloader") or {}).get("dataset") or {})
        if not section:
            raise UserError(f"{source.name} does not say what it was trained on; give --data DIR.")
    return build(DATASETS, section, where=where, resolution=resolution)


def describe_data(dataset: Dataset, num: int, seed: int) -> dict[str, Any]:
    """Return the record of which images were looked at."""
    return {
        "kind": type(dataset).__name__,
        "size": len(dataset),
        "order": dataset.fingerprint()["order"],
        "images": num,
        "seed": seed,
    }


def batches(
    dataset: Dataset, num: int, *, batch: int, seed: int, chosen: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield batches of images, drawn without repeats.

    Args:
        dataset: The data set.
        num: Number of images.
        batch: Images at once; the last batch may be smaller.
        seed: Which images.
        chosen: These images instead, by their numbers.

    Raises:
        UserError: If the data set has fewer images.
    """
    if num > len(dataset):
        raise UserError(f"--num: the data set has {len(dataset)} images, {num} were asked for.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    picked = order[:num].tolist() if chosen is None else list(chosen)
    for start in range(0, len(picked), batch):
        yield default_collate([dataset[index] for index in picked[start : start + batch]])


def generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a generator that is seeded by a few integers."""
    return torch.Generator(device).manual_seed(mix_seed(*numbers))


# ---- a step without training ----------------------------------------------------------------


def at_times(noised: Noised, t: Tensor, grid: tuple[int, int]) -> Noised:
    """Return the same data and noise mixed at other times, the same for all tokens of a sample.

    Its `target` is empty: only the flow loss compares with it.

    Args:
        noised: A noised batch of B samples, views included.
        t: Times [B].
        grid: The token grid.
    """
    if noised.t.ndim == 2:
        t = t[:, None].expand_as(noised.t)
    return replace(noised, x=noised.at(t, grid), t=t, target={})


def observe(
    net: AlignedDenoiser,
    clean: Clean,
    t: Tensor,
    rng: torch.Generator,
    *,
    progress: Progress,
    taps: frozenset[Tap] | None = None,
    unconditional: bool = False,
) -> TargetView:
    """Run the backbone on a noised batch as a training step does, at given times.

    Conditions are dropped as in training unless all are. No tokens skip blocks.

    Args:
        net: The network, in eval mode.
        clean: The encoded batch of B images.
        t: Times [views * B].
        rng: Draws the noise and the dropped conditions.
        progress: Where the run stands.
        taps: What to read; by default what alignments and priors read.
        unconditional: Give every sample the null condition.
    """
    noised = at_times(net.flow.sample(clean.streams, rng), t, net.geometry.grid)
    cond = net.parts.conditioner(clean, rng)
    if unconditional:
        count = len(clean.streams["image"])
        cond = Condition(net.parts.conditioner.null(count, net.parts.device))
    cond = cond.repeat(noised.views)
    plan = net.plan(noised, rng)
    wanted = net.taps if taps is None else taps
    out = net.backbone(noised.x, noised.t, cond.value, taps=wanted, plan=plan)
    return TargetView(clean, noised, cond, out, rng, progress, plan, net.parts.ema.backbone)
