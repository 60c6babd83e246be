"""An official run becomes one of ours that `ahpa train CONFIG --work-dir OUT --resume` continues.

Weights, average, heads, the optimiser's moments and the number of steps carry over. The order of
the data does not: ours is a function of our seed and the number of samples consumed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ..engine import checkpoint
from ..engine.assembly import build_model
from ..engine.denoiser import AlignedDenoiser
from ..engine.optimiser import Optimiser, build_optimizer
from ..engine.plain import to_plain
from ..registry import UserError
from .layouts import Layout, State, find_heads, layout_of
from .published import Contents, drop_variance, read_published_file, scaling, take_apart

MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM = ("Adam", "AdamW")


class Continued(TypedDict):
    """What was written: the checkpoint, the number of steps done, and notes for a person."""

    checkpoint: Path
    iteration: int
    notes: list[str]


class Moments(NamedTuple):
    """The state of an Adam optimiser by published keys.

    Attributes:
        averages: {"exp_avg" or "exp_avg_sq": {key: tensor}}.
        steps: {key: number of steps}.
    """

    averages: dict[str, State]
    steps: dict[str, Tensor]


def import_run(
    source: Path,
    work_dir: Path,
    *,
    layout: str,
    cfg: Mapping[str, Any],
    num_heads: int | None = None,
) -> Continued:
    """Write an official run's checkpoint as the newest one of a work dir.

    Args:
        source: The file of the official training program.
        work_dir: The work dir, which must not hold a run.
        layout: One of `FORMATS`.
        cfg: The checked config that continues it.
        num_heads: Attention heads, needed for widths that are not published.

    Raises:
        UserError: If the file is not of the layout, does not fit the config, or if the work dir
            holds a run.
    """
    source, work_dir = Path(source), Path(work_dir)
    if checkpoint.list_checkpoints(work_dir / "checkpoints"):
        raise UserError(f"{work_dir} holds a run already; choose another work dir.")
    if cfg.get("param_scheduler"):
        raise UserError(
            "param_scheduler: an import cannot tell where a schedule stands; remove the section "
            "(the official runs have a constant learning rate)."
        )
    form = layout_of(layout)
    contents = read_published_file(source)
    model, parts = take_apart(source, contents, layout, num_heads=num_heads)
    net = build_model(cfg["model"])
    check_same_model(source, model, cfg["model"], net)
    names = backbone_names(source, net, parts["model"].backbone)
    heads, notes = head_names(source, net, form, parts["model"].beside)
    names |= heads
    load_weights(source, net, {**parts["model"].backbone, **parts["model"].beside}, names)
    optimizer = build_optimizer(cfg["optim_wrapper"]["optimizer"], net)
    steps = contents.steps
    if contents.optimizer is None or type(optimizer).__name__ not in ADAM:
        notes.append("without the optimiser's moments, which start at zero")
    else:
        moments = read_moments(source, form, contents, net.geometry.streams["image"][0])
        load_moments(optimizer, net, moments, names)
        steps = steps or int(max(map(float, moments.steps.values()), default=0))
    wrapper = {key: value for key, value in cfg["optim_wrapper"].items() if key != "optimizer"}
    path = work_dir / "checkpoints" / checkpoint.NAME.format(steps)
    checkpoint.save(
        {
            "model": net.state_dict(),
            "ema": parts["ema"].backbone,
            "beside": {kind: part.beside for kind, part in parts.items()},
            "optimizer": Optimiser(optimizer=optimizer, **wrapper).state_dict(),
            "rng": [],
            "data": {
                "iteration": steps,
                "consumed": steps * cfg["train_dataloader"]["global_batch_size"],
            },
            "schedulers": [],
            "metrics": [],
            "record": None,
            "hooks": {},
            "meta": {
                "iteration": steps,
                "config": to_plain(cfg),
                "seed": (cfg.get("randomness") or {}).get("seed", 0),
                "imported": {"layout": layout, "steps": steps},
            },
        },
        path,
    )
    notes += notes_on(contents, cfg, steps, form)
    return Continued(checkpoint=path, iteration=steps, notes=notes)


def check_same_model(
    source: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], net: AlignedDenoiser
) -> None:
    """Check what shapes do not tell: type, direction of time, heads, resolution and path.

    Args:
        source: The file, for messages.
        found: The model section that the file was read as.
        wanted: The config's model section.
        net: The model of the config.

    Raises:
        UserError: For the first difference.
    """
    options = found["backbone"]
    kind = type(net.backbone).__name__
    time = bool(wanted["backbone"].get("reversed_time"))
    path = type(net.flow.path).__name__
    linear = "DiscretePath" if options["type"] == "DiT" else "LinearPath"
    own_path = (found.get("flow") or {}).get("path", {}).get("type", linear)
    for key, mine, theirs in (
        ("model.backbone.type", kind, options["type"]),
        ("model.backbone.reversed_time", time, options.get("reversed_time", False)),
        ("model.backbone.num_heads", net.geometry.num_heads, options["num_heads"]),
        ("model.resolution", net.geometry.resolution, found["resolution"]),
        ("model.flow.path.type", path, own_path),
    ):
        if mine != theirs:
            raise UserError(
                f"{key} is {mine!r} in the config, but {theirs!r} in {source}: use a config with "
                f"that, or give --cfg-options {key}={theirs}."
            )


def backbone_names(source: Path, net: AlignedDenoiser, state: State) -> dict[str, str]:
    """Return {published key: name in our trained model}. Raises UserError if keys differ."""
    wanted = net.backbone.state_dict().keys()
    different = sorted(wanted ^ state.keys())
    if different:
        where = "the config's" if different[0] in wanted else "the file's"
        raise UserError(
            f"model.backbone: only {where} backbone has {different[0]} ({len(different)} keys "
            f"differ between the config and {source})."
        )
    return {key: f"backbone.{key}" for key in state}


def head_names(
    source: Path, net: AlignedDenoiser, form: Layout, keys: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return {published key: name in our trained model} of the heads, and notes for a person.

    Raises:
        UserError: If an alignment of the config has a projector for which the file has no head.
    """
    heads = find_heads(form, keys)
    names: dict[str, str] = {}
    number = 0
    for alignment in net.alignments:
        prefix = f"alignments.{alignment}.projector."
        own = {key.removeprefix(prefix) for key in net.state_dict() if key.startswith(prefix)}
        if not own:
            continue
        kinds = heads[number] if number < len(heads) else []
        fitting = [kind for kind in kinds if kind.keys() == own]
        if not fitting:
            held = f"its head {number} is of another kind" if kinds else f"it holds {len(heads)}"
            raise UserError(
                f"model.alignments.{alignment}.projector: {source} has no head for it ({held}). "
                "Use the method's own config, or one without this alignment."
            )
        names |= {key: f"{prefix}{name}" for name, key in fitting[0].items()}
        number += 1
    unused = len(heads) - number
    notes = [f"{unused} head(s) of the file have no alignment in the config"] if unused else []
    return names, notes


@torch.no_grad()
def load_weights(
    source: Path, net: AlignedDenoiser, state: State, names: Mapping[str, str]
) -> None:
    """Load published tensors into our model. Raises UserError for another shape."""
    own = dict(net.state_dict())
    for key, name in names.items():
        given, expected = tuple(state[key].shape), tuple(own[name].shape)
        if given != expected:
            raise UserError(
                f"{source}: {key} has the shape {given}; the config's {name} has {expected}."
            )
        own[name].copy_(state[key])


def read_moments(source: Path, form: Layout, contents: Contents, channels: int) -> Moments:
    """Read the state of the optimiser, which numbers the parameters in their order.

    Args:
        source: The file, for messages.
        form: Its layout.
        contents: What it holds.
        channels: Channels of the latent.

    Raises:
        UserError: If it does not belong to the file's trained weights.
    """
    optimizer = contents.optimizer or {}
    state = contents.states["model"]
    fixed = {"pos_embed"} if form.backbone == "MMDiT" else set()  # a buffer there
    keys = [key for key in state if key not in fixed]
    try:
        numbers = [i for group in optimizer["param_groups"] for i in group["params"]]
        if len(numbers) != len(keys):
            raise ValueError(f"{len(numbers)} parameters, but the model has {len(keys)}")
        held = {
            key: optimizer["state"][i]
            for key, i in zip(keys, numbers, strict=True)
            if i in optimizer["state"]
        }
        averages = {
            name: {key: entry[name].float() for key, entry in held.items()} for name in MOMENTS
        }
        steps = {key: torch.as_tensor(entry["step"]).float() for key, entry in held.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{source}: its "opt" is not an Adam\'s state ({error}).') from error
    for name, average in averages.items():
        for key, value in average.items():
            if value.shape != state[key].shape:
                raise UserError(f'{source}: "opt" has {name} of another shape than {key}.')
        if form.variance == "dropped" and average:
            drop_variance(average, channels)
    return Moments(averages, steps)


def load_moments(
    optimizer: torch.optim.Optimizer,
    net: AlignedDenoiser,
    moments: Moments,
    names: Mapping[str, str],
) -> None:
    """Load published moments into our optimiser; parameters missing there start afresh."""
    published = {name: key for key, name in names.items()}
    own = {id(p): name for name, p in net.named_parameters()}
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    for p, number in zip(parameters, numbers, strict=True):
        key = published.get(own[id(p)])
        if key in moments.steps:
            averages = {name: moments.averages[name][key] for name in MOMENTS}
            state["state"][number] = {"step": moments.steps[key], **averages}
    optimizer.load_state_dict(state)


def notes_on(contents: Contents, cfg: Mapping[str, Any], steps: int, form: Layout) -> list[str]:
    """List what a person should compare before the run is continued."""
    notes = []
    if contents.states["model"] is contents.states["ema"]:
        notes.append("the file holds one state dict, which is both the weights and their average")
    longest = cfg["train_cfg"]["max_iters"]
    if steps >= longest:
        notes.append(f"{steps} steps are done and the config has {longest}: give --max-iters")
    scaled, official = scaling(cfg["model"]["tokenizer"]), scaling(form.tokenizer)
    if scaled != official:
        notes.append(f"latents were scaled by {official} there; the config has {scaled}")
    wrapper, loader = cfg["optim_wrapper"], cfg["train_dataloader"]
    taps = [alignment.get("tap") for alignment in (cfg["model"].get("alignments") or {}).values()]
    for option, own in (
        ("learning_rate", wrapper["optimizer"].get("lr")),
        ("max_grad_norm", wrapper.get("clip_grad")),
        ("batch_size", loader["global_batch_size"]),
        ("global_batch_size", loader["global_batch_size"]),
        ("encoder_depth", taps[0] if taps else None),
        ("block_out_s", taps[0] if taps else None),
    ):
        theirs = contents.args.get(option)
        if theirs is not None and own is not None and theirs != own:
            notes.append(f"{option} was {theirs!r} there; the config has {own!r}")
    return notes
