"""Published checkpoints in and out: the layouts of SiT, DiT, REPA and its family, REG and REPA's
MMDiT. Every size is read from the shapes, and nothing in a file is executed.

State dicts carry over unchanged, except for the fixed positions (computed here, and compared with
the file's) and the variance channels of SiT, which its own sampling drops. What a file holds beside
the backbone, the heads of the alignment, is kept in the checkpoint for the way out.
"""

import argparse
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ..backbones.layers import sincos_2d
from ..engine import checkpoint
from ..engine.weights import (
    NORMALISATION,
    backbone_of,
    is_hub_id,
    is_published,
    read_published,
    with_autoencoder,
)
from ..registry import BACKBONES, TOKENIZERS, UserError, build, check
from ..registry.contracts import Backbone
from ..registry.errors import printable
from ..registry.files import write_file
from ..registry.shapes import shapes_only
from ..registry.validation import choice, integer, positive_int
from ..registry.weight_files import read_contents
from ..tokenizers.statistics import PUBLISHED
from .layouts import (
    FORMATS,
    MLP,
    Layout,
    State,
    check_beside,
    formats_of,
    heads_of_run,
    is_beside,
    layout_of,
)

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published widths, which shapes do not tell."""
MMDIT_HEAD = 32  # width of a head of REPA's MMDiT
OUTPUT = "final_layer.linear."
DOWNSAMPLE = 8  # pixels per latent of all published models
MOST_BLOCKS = 512
MOST_STEPS = 1 << 40
TOLERANCE = 1e-4  # largest deviation of a file's positions from the formula
PATHS = {"linear": "LinearPath", "cosine": "CosinePath", "gvp": "CosinePath"}
"""Our names of the paths that the arguments in a file name; SiT's GVP is REPA's cosine."""
VELOCITY = ("v", "velocity")
WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")
"""Prefixes of parallel and of compiled models, in any order."""


class Imported(TypedDict):
    """What an import did, for a person.

    `backbone` and `tokenizer` are the configs of the backbone and of the autoencoder to sample
    with, and `resolution` is the side of the images in pixels.
    `kept` names what the file held beside the backbone, which is written back by an export;
    `left_out` names what was dropped.
    """

    backbone: dict[str, Any]
    tokenizer: dict[str, Any]
    resolution: int
    kept: list[str]
    left_out: list[str]


class Exported(TypedDict):
    """What an export wrote: the number of tensors of a state dict, and notes for a person."""

    tensors: int
    notes: list[str]


class Sizes(NamedTuple):
    """What the shapes of a state dict tell.

    Attributes:
        options: Options of the backbone.
        side: Side of the latent.
        channels: Channels of the latent.
        variance: Whether there are twice as many outputs as channels.
    """

    options: dict[str, Any]
    side: int
    channels: int
    variance: bool


class Contents(NamedTuple):
    """A published file.

    Attributes:
        states: The state dicts "ema" and "model"; a file with one of them, or with a bare state
            dict, has it under both names.
        args: The arguments of the training program; {} if the file has none.
        optimizer: State of the optimiser over the parameters of "model"; None if it has none.
        steps: Optimiser steps that were done; 0 if the file does not say.
    """

    states: dict[str, State]
    args: dict[str, Any]
    optimizer: Mapping[str, Any] | None
    steps: int


class Parts(NamedTuple):
    """A published state dict, taken apart.

    Attributes:
        backbone: The backbone's state dict, float32.
        beside: Heads and unused layers under their published keys, float32.
        left_out: What was dropped.
    """

    backbone: State
    beside: State
    left_out: list[str]


# ---- in -------------------------------------------------------------------------------------


def import_weights(
    source: Path,
    target: Path,
    *,
    layout: str,
    weights: str = "ema",
    vae: str | None = None,
    normalisation: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
) -> Imported:
    """Turn a published checkpoint into one of ours, which can be sampled from.

    Args:
        source: The published file, a pickle or .safetensors.
        target: The checkpoint to write.
        layout: One of `FORMATS`.
        weights: "ema" to sample from the average, which the file must hold (the trained weights
            are kept too if it holds both); "model" for the trained weights alone.
        vae: Autoencoder to sample with; by default the official code's own default.
        normalisation: Options of KLAutoencoder that say how the latents were scaled, such as
            {"mean": [...], "std": [...]}, in place of the layout's; {"statistics": None} for the
            autoencoder's own factor.
        num_heads: Attention heads, needed for widths that are not published.

    Raises:
        UserError: If the layout is unknown, if the file is damaged or could run code, if keys or
            shapes do not fit, or if its positions are not the fixed ones.
    """
    tokenizer = tokenizer_of(layout_of(layout), vae, normalisation or {})
    contents = read_published_file(Path(source), weights)
    model, parts = take_apart(Path(source), contents, layout, num_heads=num_heads)
    model["tokenizer"] = tokenizer
    ema = parts["ema"]
    checkpoint.save_imported(
        model,
        ema.backbone,
        Path(target),
        layout=layout,
        trained=parts["model"].backbone,
        beside={kind: part.beside for kind, part in parts.items()},
        steps=contents.steps,
    )
    return Imported(
        backbone=model["backbone"],
        tokenizer=tokenizer,
        resolution=model["resolution"],
        kept=sorted(ema.beside),
        left_out=ema.left_out,
    )


def tokenizer_of(form: Layout, vae: str | None, normalisation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the autoencoder to sample with.

    Args:
        form: The layout.
        vae: Autoencoder; the layout's own by default.
        normalisation: How the latents were scaled, in place of the layout's; see `import_weights`.

    Raises:
        UserError: For an option that does not say how latents are scaled, or a wrong value.
    """
    tokenizer = with_autoencoder(form.tokenizer, vae) if vae else dict(form.tokenizer)
    if not normalisation:
        return tokenizer
    for option in normalisation:
        choice("the option of model.tokenizer", option, NORMALISATION)
    tokenizer = {key: value for key, value in tokenizer.items() if key not in NORMALISATION}
    tokenizer |= {key: value for key, value in normalisation.items() if value is not None}
    check(TOKENIZERS, tokenizer, where="model.tokenizer")
    if "statistics" in tokenizer:
        choice("model.tokenizer.statistics", tokenizer["statistics"], tuple(PUBLISHED))
    ways = [{"statistics"}, {"scale", "shift"}, {"mean", "std"}]
    if sum(not way.isdisjoint(tokenizer) for way in ways) > 1:
        raise UserError(
            "model.tokenizer: give statistics, or scale and shift, or mean and std, not several."
        )
    return tokenizer


def read_published_file(path: Path, weights: str = "ema") -> Contents:
    """Read a published file: a bare state dict, or the "ema" and "model" entries.

    Args:
        path: The file.
        weights: "ema" or "model"; see `import_weights`.

    Raises:
        UserError: If the file is missing or damaged, could run code, or has no such entry.
    """
    # Training programs store their arguments as a Namespace, which is harmless.
    contents = read_contents(path, "the published checkpoint", allowed=[argparse.Namespace])
    if {"meta", "model", "ema"} <= contents.keys():
        raise UserError(
            f"{path} is already a checkpoint of ours, and can be sampled from; --export "
            "writes it in a published layout."
        )
    if "ema" not in contents and "model" not in contents:
        state = tensors_of(path, contents)
        return Contents({"ema": state, "model": state}, {}, None, 0)
    if weights not in contents:
        present = ", ".join(map(str, contents))
        raise UserError(f"{path} has no {weights!r}, only {present}; choose with --weights.")
    first = tensors_of(path, contents[weights])
    states = {"ema": first, "model": first}
    if weights == "ema" and "model" in contents:
        states["model"] = tensors_of(path, contents["model"])
    given = contents.get("args")
    args = vars(given) if isinstance(given, argparse.Namespace) else {}
    optimizer = contents.get("opt") if "model" in contents else None
    steps = contents.get("steps", contents.get("train_steps", 0))
    integer(f"{path}: steps", steps, most=MOST_STEPS)
    return Contents(
        states,
        args,
        optimizer if isinstance(optimizer, Mapping) else None,
        steps,
    )


def tensors_of(path: Path, state: Any) -> State:
    """Return a state dict without the prefixes of wrappers and with its blocks in one list.

    Raises:
        UserError: If it is no state dict of tensors, or its shapes exceed the file's size.
    """
    tensors = isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items()
    )
    if not tensors:
        raise UserError(f"{path} does not hold a state dict of tensors.")
    odd = [key for key, x in state.items() if not x.is_floating_point()]
    if odd:
        raise UserError(f"{path}: {odd[0]} holds {state[odd[0]].dtype}, not floats.")
    if sum(x.nbytes for x in state.values()) > path.stat().st_size:
        raise UserError(f"{path} is refused: its shapes promise more numbers than it holds.")
    bare = {WRAPPERS.sub("", key) if WRAPPERS.match(key) else key: x for key, x in state.items()}
    joined = join_decoder_blocks(bare)
    if len(joined) < len(state):
        raise UserError(f"{path} is refused: it holds some weights twice, under several names.")
    return joined


def join_decoder_blocks(state: State) -> State:
    """Rename REPA's first layout, in which the blocks behind the aligned one are a list of their
    own: `decoder_blocks.i` is `blocks.i` after the `blocks` of the file."""
    first = len(block_numbers(state, "blocks"))

    def joined(key: str) -> str:
        found = re.fullmatch(r"decoder_blocks\.(\d{1,4})\.(.+)", key)
        return f"blocks.{int(found[1]) + first}.{found[2]}" if found else key

    return {joined(key): value for key, value in state.items()}


def block_numbers(state: Mapping[str, Tensor], blocks: str) -> set[int]:
    """Return the numbers of the blocks in a state dict."""
    return {int(found[1]) for key in state if (found := re.match(rf"{blocks}\.(\d{{1,4}})\.", key))}


def take_apart(
    source: Path,
    contents: Contents,
    layout: str,
    *,
    num_heads: int | None = None,
) -> tuple[dict[str, Any], dict[str, Parts]]:
    """Check a published file against a layout.

    Args:
        source: The file, for messages.
        contents: What it holds.
        layout: One of `FORMATS`.
        num_heads: Attention heads, needed for widths that are not published.

    Returns:
        The config's model section, and the "ema" and "model" state dicts taken apart.

    Raises:
        UserError: If the file is not of the layout.
    """
    form = layout_of(layout)
    check_program(source, layout, contents)
    sizes = sizes_of(contents.states["ema"], form.backbone, num_heads)
    check_variance(source, layout, sizes.variance)
    options = {"type": form.backbone, **sizes.options, **form.options}
    backbone = build_backbone(options, sizes.side, sizes.channels)
    model: dict[str, Any] = {
        "resolution": sizes.side * DOWNSAMPLE,
        "backbone": options,
        "tokenizer": dict(form.tokenizer),
    }
    flow = flow_of(source, form, contents.args)
    if flow is not None:
        model["flow"] = flow
    if form.backbone == "DiT" and options["learn_sigma"]:
        model["flow_loss"] = {"type": "HybridLoss"}
    if form.backbone == "MMDiT":
        encoder = {"type": "CLIPTextEncoder"}
        model["conditioner"] = {"type": "TextConditioner", "encoder": encoder}
    ema = parts_of(source, layout, contents.states["ema"], backbone)
    trained = ema
    if contents.states["model"] is not contents.states["ema"]:
        trained = parts_of(source, layout, contents.states["model"], backbone)
    return model, {"ema": ema, "model": trained}


def build_backbone(options: Mapping[str, Any], side: int, channels: int) -> Backbone:
    """Build a backbone for latents of these sizes, without memory (on the meta device)."""
    with shapes_only():
        return build(BACKBONES, options, where="backbone", input_size=side, in_channels=channels)


def check_variance(source: object, name: str, variance: bool) -> None:
    """Check whether a layout has outputs for a variance.

    Raises:
        UserError: If the file has them and the layout has none, or the other way round.
    """
    wanted = FORMATS[name].variance
    if variance and wanted == "never":
        held = "its output has twice the latent's channels (a variance), unlike that format"
    elif not variance and wanted == "always":
        held = "its output has no channels for a variance, which that format has"
    else:
        return
    other = {"sra": "sra-dit", "sra-dit": "sra"}.get(name, "sit, dit")
    raise UserError(f"{source} is not of the format {name!r}: {held}. Try --format {other}.")


def check_program(source: object, name: str, contents: Contents) -> None:
    """Check what a file's arguments say of the program that wrote it: shapes do not tell a DiT from
    a SiT, nor a SiT without a variance, whose time runs the other way, from a REPA without heads.

    Raises:
        UserError: If they are those of another format.
    """
    form, args = FORMATS[name], contents.args
    fitting = formats_of(contents.states["ema"])
    kind = str(args.get("model"))[:3]
    of_sit = args.get("prediction") == "velocity" and "sit" in fitting
    if kind in ("SiT", "DiT") and form.backbone in ("SiT", "DiT") and kind != form.backbone:
        held = f"is a {args['model']!r}"
        others = [other for other in fitting if FORMATS[other].backbone == kind]
    elif of_sit and MLP in form.heads:
        held = "was written by SiT's program (its prediction is called 'velocity')"
        others = fitting
    else:
        return
    others = ["sit"] if of_sit and "sit" in others else others
    hint = f" Try --format {', '.join(others)}." if others else ""
    raise UserError(
        f"{source} is not of the format {name!r}: its arguments say that it {held}.{hint}"
    )


def flow_of(source: object, form: Layout, args: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the flow's config that a file's own arguments ask for; None for the default.

    Raises:
        UserError: If it was trained on a path, or to predict something, that is not known here.
    """
    if form.backbone == "DiT":
        return {"type": "DiscreteFlow"}
    path, prediction = args.get("path_type", "linear"), args.get("prediction", "v")
    if str(path).lower() not in PATHS:
        raise UserError(f"{source} was trained on the path {path!r}; known are {[*PATHS]}.")
    if prediction not in VELOCITY:
        raise UserError(f"{source} was trained to predict {prediction!r}, not the velocity.")
    kind = PATHS[str(path).lower()]
    return None if kind == "LinearPath" else {"type": "Flow", "path": {"type": kind}}


def parts_of(source: Path, layout: str, state: State, backbone: Backbone) -> Parts:
    """Take a published state dict apart and check it. Raises UserError if it does not fit."""
    wanted = backbone.state_dict()
    beside = {key: value.float() for key, value in state.items() if is_beside(key, wanted)}
    own = {key: value for key, value in state.items() if key not in beside}
    check_beside(source, layout, beside)
    if "pos_embed" not in own:
        raise UserError(f"{source} is not of the format {layout!r}: it lacks pos_embed.")
    positions = own.pop("pos_embed")
    left_out = []
    if FORMATS[layout].variance == "dropped":
        left_out = drop_variance(own, backbone.streams["image"][0])
    check_keys(source, layout, own, wanted)
    check_positions(positions, backbone)
    return Parts({key: value.float() for key, value in own.items()}, beside, left_out)


def sizes_of(state: Mapping[str, Tensor], kind: str, num_heads: int | None) -> Sizes:
    """Read the sizes of a backbone from the shapes of its state dict.

    Args:
        state: The published state dict.
        kind: Registered name of the backbone.
        num_heads: Attention heads; None to look them up by the width.

    Raises:
        UserError: If a key is missing, or the number of heads is unknown.
    """
    if num_heads is not None:
        positive_int("--num-heads", num_heads)
    joint = kind == "MMDiT"
    numbers = block_numbers(state, "joint_blocks" if joint else "blocks")
    integer("blocks of the file", len(numbers), most=MOST_BLOCKS)
    first = "joint_blocks.0.x_block." if joint else "blocks.0."
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        prefix = 1 if kind == "ClassStreamSiT" else 0
        tokens = state["pos_embed"].shape[1] - prefix
        outputs = state[f"{OUTPUT}weight"].shape[0]
        hidden = state[f"{first}mlp.fc1.weight"].shape[0]
        options: dict[str, Any] = {
            "depth": len(numbers),
            "hidden_size": width,
            "patch_size": patch,
            "mlp_ratio": hidden / width,
        }
        if joint:
            options["text_dim"] = state["context_embedder.weight"].shape[1]
        else:
            options["num_classes"] = state["y_embedder.embedding_table.weight"].shape[0] - 1
        if kind == "ClassStreamSiT":
            options["class_width"] = state["cls_projectors2.weight"].shape[1]
    except KeyError as error:
        formats = ", ".join(formats_of(state) or FORMATS)
        raise UserError(
            f"the file has no {error}; is it of another format? Formats: {formats}."
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"the file's shapes are not those of a {kind} ({error}).") from error
    if not width or not channels or not patch or outputs < 0:
        raise UserError(f"the file's tensors are empty, which no {kind} is.")
    heads = num_heads or (width // MMDIT_HEAD if joint else HEADS.get(width))
    norm = f"{first}attn.{'ln_q' if joint else 'q_norm'}."
    if f"{norm}weight" in state:
        if f"{norm}bias" not in state:
            raise UserError(f"{norm}weight without a bias: an RMSNorm of queries is not supported.")
        options["qk_norm"] = True
        heads = num_heads or width // max(1, state[f"{norm}weight"].numel())
    if not heads:
        raise UserError(
            f"the number of attention heads of a model of width {width} is unknown; "
            "give --num-heads."
        )
    options["num_heads"] = heads
    variance = outputs == 2 * channels * patch * patch
    if kind == "DiT":
        options["learn_sigma"] = variance
    return Sizes(options, round(tokens**0.5) * patch, channels, variance)


def check_positions(found: Tensor, backbone: Backbone) -> None:
    """Check a file's positions against the fixed ones. Raises UserError if they differ."""
    shape = (1, backbone.prefix + math.prod(backbone.grid), backbone.hidden_size)
    same = found.shape == shape and found.is_floating_point()
    if same:  # the table is computed only if the file has one of its size
        wanted = positions_of(backbone)
        tolerance = max(TOLERANCE, torch.finfo(found.dtype).eps)  # positions lie in [-1, 1]
        same = bool((found.float() - wanted).abs().max() <= tolerance)
    if not same:
        raise UserError("the file's pos_embed is not the fixed sin-cos table of these models.")


def positions_of(backbone: Backbone) -> Tensor:
    """Return the fixed positions [1, P+N, D]: a row of zeros for each prefix token comes first."""
    fixed = sincos_2d(backbone.hidden_size, backbone.grid)
    zeros = fixed.new_zeros(1, backbone.prefix, backbone.hidden_size)
    return torch.cat([zeros, fixed], dim=1)


def check_keys(source: Path, layout: str, state: State, wanted: State) -> None:
    """Check the keys and shapes of a state dict. Raises UserError that names the first ones."""
    for what, keys in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if keys:
            shown = printable(", ".join(sorted(keys)[:5])[:300])
            more = " ..." if len(keys) > 5 else ""
            others = [name for name in formats_of(state) if name != layout]
            alike = layout in formats_of(state)
            hint = f" Try --format {', '.join(others)}." if others and not alike else ""
            raise UserError(
                f"{source} is not of the format {layout!r}: it {what} {shown}{more}.{hint}"
            )
    for key, value in wanted.items():
        given = tuple(state[key].shape)
        expected = tuple(value.shape)
        if given != expected:
            raise UserError(f"{source}: {key} has the shape {given}, expected {expected}.")


def drop_variance(state: State, channels: int) -> list[str]:
    """Keep the first `channels` outputs of each latent if there are twice as many, in place.

    Returns:
        What was left out.
    """
    outputs = state[f"{OUTPUT}weight"].shape[0]
    patch = state["x_embedder.proj.weight"].shape[-1]
    if outputs != 2 * channels * patch * patch:
        return []
    for name in ("weight", "bias"):
        value = state[f"{OUTPUT}{name}"]
        kept = value.unflatten(0, (patch * patch, 2 * channels))[:, :channels]
        state[f"{OUTPUT}{name}"] = kept.flatten(0, 1).contiguous()
    return [f"{OUTPUT}* (the channels of the variance)"]


# ---- out ------------------------------------------------------------------------------------


class Source(NamedTuple):
    """What an export reads.

    Attributes:
        model: The config's model section.
        states: The backbone's state dicts "ema" and "model", or one of them.
        heads: The heads under the layout's keys, for each of them; {} if there are none.
        steps: Optimiser steps that were done.
    """

    model: dict[str, Any]
    states: dict[str, State]
    heads: dict[str, State]
    steps: int


def export_weights(source: Path, target: Path, *, layout: str, weights: str = "both") -> Exported:
    """Write a run in a published layout, positions and heads included, as {"model", "ema"}.

    Official scripts for sampling read "ema" (text to image reads "model"), and load it strictly.

    Args:
        source: A checkpoint, work dir, published folder or Hub id.
        target: The file to write.
        layout: One of `FORMATS`.
        weights: "both": the trained and the averaged weights, each under its name; "ema" or
            "model": these under both names. A source that holds one kind writes it under both.

    Raises:
        UserError: If the layout is unknown, or belongs to another kind of backbone.
    """
    form = layout_of(layout)
    run = read_source(source, layout, weights)
    options = dict(run.model["backbone"])
    check_exportable(source, layout, form, options)
    notes = check_flow(source, layout, run.model)
    state = next(iter(run.states.values()))
    channels = state["x_embedder.proj.weight"].shape[1]
    backbone = build_backbone(options, run.model["resolution"] // DOWNSAMPLE, channels)
    check_variance(source, layout, backbone.out_channels == 2 * channels)
    entries: dict[str, Any] = {}
    for kind, state in run.states.items():
        fixed = {"pos_embed": positions_of(backbone), **unused_norm(options, state)}
        entries[kind] = {**fixed, **state, **run.heads.get(kind, {})}
    only = next(iter(entries.values()))
    written = {kind: entries.get(kind, only) for kind in ("model", "ema")}
    buffer = io.BytesIO()
    torch.save({**written, "steps": run.steps}, buffer)
    write_file(Path(target), buffer.getbuffer())
    if len(entries) == 1:
        notes.append(f'"model" and "ema" are the same: the {next(iter(entries))!r} weights')
    if form.heads and not any(run.heads.values()):
        notes.append(
            f"no heads: {source} has none of the layout {layout!r}, and official scripts refuse a "
            "file without them unless they load it with strict=False"
        )
    return Exported(tensors=len(only), notes=notes)


def unused_norm(options: Mapping[str, Any], state: State) -> State:
    """Return the norm of queries that MMDiT's last text block has in the layout, and never uses."""
    if options["type"] != "MMDiT" or not options.get("qk_norm"):
        return {}
    last = f"joint_blocks.{options['depth'] - 1}.context_block.attn."
    width = len(state[f"{last}ln_k.weight"])
    return {f"{last}ln_q.weight": torch.ones(width), f"{last}ln_q.bias": torch.zeros(width)}


def read_source(source: Path | str, layout: str, weights: str) -> Source:
    """Read what an export writes. Raises UserError for weights that the source does not hold."""
    if weights not in ("both", "ema", "model"):
        raise UserError(f"weights: must be 'both', 'ema' or 'model', got {weights!r}.")
    path = Path(source).expanduser()
    if is_published(path) or is_hub_id(str(source), path):
        config, state = read_published(str(source), path)
        kind = config["weights"]
        if weights not in ("both", kind):
            raise UserError(f"{source} only holds the {kind!r} weights.")
        steps = integer(f"{source}: iteration", config.get("iteration", 0), most=MOST_STEPS)
        return Source(config["model"], {kind: state}, {}, steps)
    saved = checkpoint.load(path)
    meta = saved["meta"]
    model = dict(meta["config"]["model"])
    kinds = ("ema", "model") if weights == "both" else (weights,)
    imported = meta.get("imported", {})
    if imported.get("layout") == layout:
        heads = {kind: saved.get("beside", {}).get(kind, {}) for kind in kinds}
    else:  # the heads of a run are not averaged
        own = heads_of_run(layout_of(layout), model.get("alignments") or {}, saved["model"])
        heads = {kind: own or {} for kind in kinds}
    return Source(
        model=model,
        states={kind: backbone_of(saved, kind) for kind in kinds},
        heads=heads,
        steps=meta["iteration"] or imported.get("steps", 0),
    )


def check_exportable(source: object, name: str, form: Layout, options: Mapping[str, Any]) -> None:
    """Check that a backbone of these options is the layout's. Raises UserError."""
    reversed_time = bool(options.get("reversed_time"))
    fits = options["type"] == form.backbone
    if not fits or reversed_time != form.options.get("reversed_time", False):
        held = options["type"] + (" of reversed time" if reversed_time else "")
        wanted = form.backbone + (" of reversed time" if form.options.get("reversed_time") else "")
        fitting = [
            other
            for other, layout in FORMATS.items()
            if layout.backbone == options["type"]
            and layout.options.get("reversed_time", False) == reversed_time
        ]
        hint = f" Try --format {', '.join(fitting)}." if fitting else ""
        raise UserError(
            f"{source}: its backbone is {held}, and the layout {name!r} is for {wanted}.{hint}"
        )
    steps = 1000.0 if form.backbone == "DiT" else 1.0
    for option, only in (("time_scale", steps), ("pooled_dim", None)):
        if options.get(option, only) != only:
            raise UserError(
                f"{source}: its backbone has {option}={options[option]!r}; the layout {name!r} has "
                f"no place for it, only {only!r} can be exported."
            )


def check_flow(source: object, name: str, model: Mapping[str, Any]) -> list[str]:
    """Check that official samplers read a run's predictions as what they are.

    Returns:
        Notes for a person.

    Raises:
        UserError: If the network does not predict a velocity (or, on a discrete path, the noise).
    """
    flow = model.get("flow") or {}
    prediction = flow.get("prediction", "velocity")
    discrete = flow.get("type") == "DiscreteFlow"
    if discrete != (FORMATS[name].backbone == "DiT"):
        held, wanted = (
            ("a discrete", "a continuous") if discrete else ("a continuous", "a discrete")
        )
        raise UserError(
            f"{source} was trained on {held} path; the layout {name!r} has {wanted} one."
        )
    if prediction != "velocity":
        raise UserError(
            f"{source} predicts the {prediction}; a network of the layout {name!r} predicts the "
            "velocity."
        )
    notes = []
    if (flow.get("path") or {}).get("type") == "CosinePath":
        notes.append("trained on the cosine path: sample with --path-type cosine (SiT: GVP)")
    ours, theirs = scaling(model["tokenizer"]), scaling(FORMATS[name].tokenizer)
    if ours != theirs:
        notes.append(
            f"its latents are scaled by {ours}, those of the official script by {theirs}: give "
            "the script the same scaling, or its samples are wrong"
        )
    return notes


def scaling(tokenizer: Mapping[str, Any]) -> str:
    """Describe how a tokenizer's config scales the latents, as "statistics='sd-imagenet'"."""
    own = [f"{key}={tokenizer[key]!r}" for key in NORMALISATION if tokenizer.get(key) is not None]
    return ", ".join(own) or "the autoencoder's own factor (Stable Diffusion's: 0.18215)"
