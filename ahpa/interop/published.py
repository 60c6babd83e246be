"""Published checkpoints in and out: the layouts of SiT, DiT, REPA and its family, REG and REPA's
MMDiT. Every size is read from the shapes, and nothing in a file is executed.

Our backbones use the published names, so state dicts carry over unchanged, except for the fixed
positions (computed here, and compared with the file's), the heads of the alignment (not part of a
backbone), and the variance channels of SiT, which its own sampling drops.
"""

import argparse
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ..engine import checkpoint
from ..engine.weights import read_run
from ..registry import BACKBONES, UserError, build, nearest
from ..registry.contracts import Backbone
from ..registry.errors import printable
from ..registry.files import write_file
from ..registry.weight_files import read_contents

State = dict[str, Tensor]


class Layout(NamedTuple):
    """A published layout.

    Attributes:
        backbone: Registered name of the backbone.
        options: Its options beyond the sizes.
        foreign: Prefixes of keys that belong to the alignment rather than to the backbone.
        tokenizer: Hub id of the autoencoder that the models were trained with.
    """

    backbone: str
    options: dict[str, Any]
    foreign: tuple[str, ...]
    tokenizer: str


EMA_VAE = "stabilityai/sd-vae-ft-ema"
MSE_VAE = "stabilityai/sd-vae-ft-mse"
FORMATS = {
    "sit": Layout("SiT", {"reversed_time": True}, (), EMA_VAE),
    "dit": Layout("DiT", {}, (), EMA_VAE),
    "repa": Layout("SiT", {}, ("projectors.",), MSE_VAE),
    "irepa": Layout("SiT", {}, ("projectors.",), MSE_VAE),
    "sra": Layout("SiT", {}, ("ap_head.",), EMA_VAE),
    "reg": Layout("ClassStreamSiT", {}, ("projectors.",), MSE_VAE),
    "repa-t2i": Layout("MMDiT", {}, ("projectors.",), MSE_VAE),
}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published widths, which shapes do not tell."""
MMDIT_HEAD = 32  # width of a head of REPA's MMDiT
OUTPUT = "final_layer.linear."
DOWNSAMPLE = 8  # pixels per latent of all published models
TOLERANCE = 1e-4  # largest deviation of a file's positions from the formula


class Imported(TypedDict):
    """What an import did, for a person.

    `backbone` is the config of the backbone, `resolution` the side of the images in pixels, and
    `left_out` names what the file held beyond the backbone.
    """

    backbone: dict[str, Any]
    resolution: int
    left_out: list[str]


class Sizes(NamedTuple):
    """What the shapes of a state dict tell.

    Attributes:
        options: Options of the backbone.
        side: Side of the latent.
        channels: Channels of the latent.
    """

    options: dict[str, Any]
    side: int
    channels: int


# ---- in -------------------------------------------------------------------------------------


def import_weights(
    source: Path,
    target: Path,
    *,
    layout: str,
    weights: str = "ema",
    vae: str | None = None,
    num_heads: int | None = None,
) -> Imported:
    """Turn a published checkpoint into one of ours, which can be sampled from.

    Args:
        source: The published file, a pickle or .safetensors.
        target: The checkpoint to write.
        layout: One of `FORMATS`.
        weights: "ema" or "model", if the file holds both.
        vae: Autoencoder to sample with; by default the one that the models were trained with.
        num_heads: Attention heads, needed for widths that are not published.

    Raises:
        UserError: If the layout is unknown, if the file is damaged or could run code, if keys or
            shapes do not fit, or if its positions are not the fixed ones.
    """
    source = Path(source)
    form = layout_of(layout)
    state = read_published(source, weights)
    sizes = sizes_of(state, form.backbone, num_heads)
    options = {"type": form.backbone, **sizes.options, **form.options}
    left_out = sorted(key for key in state if key.startswith(form.foreign))
    state = {key: value.float() for key, value in state.items() if key not in left_out}
    positions = state.pop("pos_embed")
    if form.backbone == "SiT":
        left_out += drop_variance(state, sizes.channels)

    def make() -> Backbone:
        sides = {"input_size": sizes.side, "in_channels": sizes.channels}
        return build(BACKBONES, options, where="backbone", **sides)

    with torch.device("meta"):  # a file may name sizes that its tensors do not have
        check_keys(source, layout, state, make().state_dict())
    check_positions(positions, make())
    resolution = sizes.side * DOWNSAMPLE
    tokenizer = {"type": "KLAutoencoder", "source": vae or form.tokenizer}
    model: dict[str, Any] = {
        "resolution": resolution,
        "backbone": options,
        "tokenizer": tokenizer,
    }
    if form.backbone == "DiT":
        model["flow"] = {"type": "DiscreteFlow"}
        model["flow_loss"] = {"type": "HybridLoss"}
    if form.backbone == "MMDiT":
        encoder = {"type": "CLIPTextEncoder"}
        model["conditioner"] = {"type": "TextConditioner", "encoder": encoder}
    checkpoint.save_imported(model, state, Path(target), layout=layout)
    return Imported(backbone=options, resolution=resolution, left_out=left_out)


def layout_of(name: str) -> Layout:
    """Return a layout by name. Raises UserError that names the nearest ones."""
    if name not in FORMATS:
        raise UserError(f"--format: {name!r} is unknown{nearest(name, [*FORMATS, 'diffusers'])}")
    return FORMATS[name]


def read_published(path: Path, weights: str) -> State:
    """Read the state dict of a published file: the whole file, or its "ema" or "model" entry.

    Raises:
        UserError: If the file is missing or damaged, could run code, or has no such entry.
    """
    # Training programs store their arguments as a Namespace, which is harmless.
    state = read_contents(path, "the published checkpoint", allowed=[argparse.Namespace])
    if "ema" in state or "model" in state:
        if weights not in state:
            present = ", ".join(map(str, state))
            raise UserError(f"{path} has no {weights!r}, only {present}; choose with --weights.")
        state = state[weights]
    tensors = isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items()
    )
    if not tensors:
        raise UserError(f"{path} does not hold a state dict of tensors.")
    odd = [key for key, x in state.items() if not x.is_floating_point()]
    if odd:
        raise UserError(f"{path}: {odd[0]} holds {state[odd[0]].dtype}, not floats.")
    return {key.removeprefix("module.").removeprefix("_orig_mod."): x for key, x in state.items()}


def sizes_of(state: Mapping[str, Tensor], kind: str, num_heads: int | None) -> Sizes:
    """Read the sizes of a backbone from the shapes of its state dict.

    Args:
        state: The published state dict.
        kind: Registered name of the backbone.
        num_heads: Attention heads; None to look them up by the width.

    Raises:
        UserError: If a key is missing, or the number of heads is unknown.
    """
    blocks = "joint_blocks" if kind == "MMDiT" else "blocks"
    first = "joint_blocks.0.x_block." if kind == "MMDiT" else "blocks.0."
    numbers = {found[1] for key in state if (found := re.match(rf"{blocks}\.(\d+)\.", key))}
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
        if kind == "MMDiT":
            options["text_dim"] = state["context_embedder.weight"].shape[1]
        else:
            options["num_classes"] = state["y_embedder.embedding_table.weight"].shape[0] - 1
        if kind == "ClassStreamSiT":
            options["class_width"] = state["cls_projectors2.weight"].shape[1]
    except KeyError as error:
        formats = ", ".join(FORMATS)
        raise UserError(
            f"the file has no {error}; is it of another format? Formats: {formats}."
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"the file's tensors do not have the shapes of a {kind} ({error})."
        ) from error
    if not width or not channels or not patch or outputs < 0:
        raise UserError(f"the file's tensors are empty, which no {kind} is.")
    heads = num_heads or (width // MMDIT_HEAD if kind == "MMDiT" else HEADS.get(width))
    if not heads:
        raise UserError(
            f"the number of attention heads of a model of width {width} is unknown; "
            "give --num-heads."
        )
    options["num_heads"] = heads
    if kind == "DiT":
        options["learn_sigma"] = outputs == 2 * channels * patch * patch
    return Sizes(options, round(tokens**0.5) * patch, channels)


def check_positions(found: Tensor, backbone: Backbone) -> None:
    """Check a file's positions against the fixed ones. Raises UserError if they differ."""
    wanted = positions_of(backbone)
    same = found.shape == wanted.shape and (found.float() - wanted).abs().max() <= TOLERANCE
    if not same:
        raise UserError("the file's pos_embed is not the fixed sin-cos table of these models.")


def positions_of(backbone: Backbone) -> Tensor:
    """Return the fixed positions [1, P+N, D]: a row of zeros for each prefix token comes first."""
    fixed = backbone.get_buffer("pos_embed")
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
            raise UserError(f"{source} is not of the format {layout!r}: it {what} {shown}{more}.")
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


def export_weights(source: Path, target: Path, *, layout: str, weights: str = "ema") -> int:
    """Write a trained backbone in a published layout, positions included, as {weights: state}.

    Args:
        source: A checkpoint, work dir, published folder or Hub id.
        target: The file to write.
        layout: One of `FORMATS`.
        weights: "ema" or "model".

    Returns:
        The number of tensors.

    Raises:
        UserError: If the layout is unknown, or belongs to another kind of backbone.
    """
    form = layout_of(layout)
    model, state = read_run(source, weights)
    options = dict(model["backbone"])
    check_exportable(source, layout, form, options)
    backbone: Backbone = build(
        BACKBONES,
        options,
        where="backbone",
        input_size=model["resolution"] // DOWNSAMPLE,
        in_channels=state["x_embedder.proj.weight"].shape[1],
    )
    state = {"pos_embed": positions_of(backbone), **state}
    buffer = io.BytesIO()
    torch.save({weights: state}, buffer)
    write_file(Path(target), buffer.getbuffer())
    return len(state)


def check_exportable(source: Path, name: str, form: Layout, options: Mapping[str, Any]) -> None:
    """Check that a backbone of these options is the layout's. Raises UserError."""
    reversed_time = bool(options.get("reversed_time"))
    fits = options["type"] == form.backbone
    if fits and reversed_time == form.options.get("reversed_time", False):
        return
    held = options["type"] + (" of reversed time" if reversed_time else "")
    wanted = form.backbone + (" of reversed time" if form.options.get("reversed_time") else "")
    raise UserError(f"{source} holds a {held}; the layout {name!r} is that of a {wanted}.")
