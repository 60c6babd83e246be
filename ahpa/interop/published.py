"""Published checkpoints in and out: the layouts of SiT, DiT, REPA and its family, REG and REPA's MMDiT.

Our backbones use the published names, so a state dict is carried over as it is; what differs is added or left out: the
fixed positions (computed here, checked against the file's), the heads of the alignment (not part of a backbone), and
SiT's direction of time. Every size is read from the shapes; nothing in a file is executed.
"""

import argparse
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import checkpoint
from ..engine.shared import read_run
from ..registry import BACKBONES, UserError, build, nearest

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # attention heads of the published widths; shapes do not tell them
FORMATS = {  # backbone; options beyond the sizes; keys that belong to the alignment and not to the backbone
    "sit": ("SiT", dict(reversed_time=True), ()),
    "dit": ("DiT", {}, ()),
    "repa": ("SiT", {}, ("projectors.",)),
    "irepa": ("SiT", {}, ("projectors.",)),
    "sra": ("SiT", {}, ("ap_head.",)),
    "reg": ("ClassStreamSiT", {}, ("projectors.",)),
    "repa-t2i": ("MMDiT", {}, ("projectors.",)),
}
VAE = {"sit": "stabilityai/sd-vae-ft-ema", "dit": "stabilityai/sd-vae-ft-ema", "sra": "stabilityai/sd-vae-ft-ema"}
DROPPED_HALF = "final_layer.linear."  # SiT's variance channels, which its own sampling drops
DOWNSAMPLE = 8
STATS = 1e-4  # how far a file's positions may be from the formula


def read_published(path: Path, weights: str) -> dict[str, Tensor]:
    """The state dict of a published file: bare, or its 'ema' or 'model' entry. UserError for anything else."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # of the training's arguments
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file may fail in any way
        raise UserError(f"{path} is refused: it is damaged, or holds more than tensors and plain values "
                        f"({type(error).__name__}).") from error  # fmt: skip
    if "ema" in state or "model" in state:
        if weights not in state:
            raise UserError(f"{path} has no {weights!r}, only {', '.join(map(str, state))}; choose with --weights.")
        state = state[weights]
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict of tensors.")
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}


def sizes_of(state: dict[str, Tensor], kind: str, num_heads: int | None) -> tuple[dict, int, int]:
    """-> (options of the backbone, the latent's side, its channels), from the shapes. UserError where they do not tell."""
    try:
        hidden, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[1] - (kind == "ClassStreamSiT")
        outputs = state["final_layer.linear.weight"].shape[0]
        blocks = "joint_blocks" if kind == "MMDiT" else "blocks"
        numbers = {int(match[1]) for key in state if (match := re.match(rf"{blocks}\.(\d+)\.", key))}
        half = f"{blocks}.0.x_block." if kind == "MMDiT" else f"{blocks}.0."
        ratio = state[f"{half}mlp.fc1.weight"].shape[0] / hidden
        own = {"depth": len(numbers), "hidden_size": hidden, "patch_size": patch, "mlp_ratio": ratio}
        if kind == "MMDiT":
            own["text_dim"] = state["context_embedder.weight"].shape[1]
        else:
            own["num_classes"] = state["y_embedder.embedding_table.weight"].shape[0] - 1
        if kind == "ClassStreamSiT":
            own["class_width"] = state["cls_projectors2.weight"].shape[1]
    except KeyError as error:
        raise UserError(f"the file has no {error}; is it of another format? Formats: {', '.join(FORMATS)}.") from error
    heads = num_heads or (hidden // 32 if kind == "MMDiT" else HEADS.get(hidden))
    if not heads:
        raise UserError(f"the file does not tell how many heads a width of {hidden} has; give --num-heads.")
    if kind == "DiT":
        own["learn_sigma"] = outputs == 2 * channels * patch * patch
    return own | {"num_heads": heads}, round(tokens**0.5) * patch, channels


def import_weights(source: Path, target: Path, *, layout: str, weights: str = "ema", vae: str | None = None,
                   num_heads: int | None = None) -> dict:  # fmt: skip
    """Turns a published checkpoint into one that tools/sample.py reads -> what was done, for a person.

    UserError for an unknown layout, for keys or shapes that do not fit, and for positions that are not the formula's.
    """
    if layout not in FORMATS:
        raise UserError(f"--format: {layout!r} is unknown{nearest(layout, [*FORMATS, 'diffusers'])}")
    kind, extra, foreign = FORMATS[layout]
    state = read_published(Path(source), weights)
    own, side, channels = sizes_of(state, kind, num_heads)
    options = {"type": kind, **own, **extra}
    left_out = sorted(key for key in state if key.startswith(foreign)) if foreign else []
    state = {key: value.float() for key, value in state.items() if key not in left_out}
    backbone = build(BACKBONES, options, where="backbone", input_size=side, in_channels=channels)
    check_positions(state.pop("pos_embed"), backbone)
    if kind == "SiT":
        left_out += drop_variance(state, channels)
    wanted = backbone.state_dict()
    for what, keys in (("lacks", wanted.keys() - state.keys()), ("has unknown", state.keys() - wanted.keys())):
        if keys:
            raise UserError(f"{source} is not of the format {layout!r}: it {what} {', '.join(sorted(keys)[:5])}"
                            f"{' ...' if len(keys) > 5 else ''}.")  # fmt: skip
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise UserError(f"{source}: {key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}.")
    tokenizer = dict(type="KLAutoencoder", source=vae or VAE.get(layout, "stabilityai/sd-vae-ft-mse"))
    model = dict(type="AlignedDenoiser", resolution=side * DOWNSAMPLE, backbone=options, tokenizer=tokenizer)
    if kind == "DiT":
        model |= dict(flow=dict(type="DiscreteFlow"), flow_loss=dict(type="HybridLoss"))
    if kind == "MMDiT":
        model["conditioner"] = dict(type="TextConditioner", encoder=dict(type="CLIPTextEncoder"))
    checkpoint.save_imported(model, state, Path(target), layout=layout)
    return dict(backbone=options, resolution=model["resolution"], left_out=left_out)


def check_positions(found: Tensor, backbone) -> None:
    """UserError unless a file's positions are the fixed ones (with a row of zeros for each prefix token)."""
    wanted = backbone.pos_embed
    zeros = wanted.new_zeros(1, backbone.prefix, wanted.shape[-1])
    wanted = torch.cat([zeros, wanted], dim=1)
    if found.shape != wanted.shape or (found.float() - wanted).abs().max() > STATS:
        raise UserError("the file's pos_embed is not the fixed sin-cos table that these models have.")


def drop_variance(state: dict[str, Tensor], channels: int) -> list[str]:
    """Keeps the first `channels` outputs of each pixel where there are twice as many -> what was left out."""
    weight = state["final_layer.linear.weight"]
    patch = state["x_embedder.proj.weight"].shape[-1]
    if weight.shape[0] != 2 * channels * patch * patch:
        return []
    for name in ("weight", "bias"):
        value = state[f"{DROPPED_HALF}{name}"]
        kept = value.unflatten(0, (patch * patch, 2 * channels))[:, :channels]
        state[f"{DROPPED_HALF}{name}"] = kept.flatten(0, 1).contiguous()
    return [f"{DROPPED_HALF}* (the variance's half)"]


def export_weights(source: Path, target: Path, *, layout: str, weights: str = "ema") -> int:
    """Writes a checkpoint's backbone in a published layout, positions included: {'ema': state} -> how many tensors.

    UserError where the checkpoint's backbone is another than the layout's.
    """
    if layout not in FORMATS:
        raise UserError(f"--format: {layout!r} is unknown{nearest(layout, [*FORMATS, 'diffusers'])}")
    kind, extra, _ = FORMATS[layout]
    model, state = read_run(source, weights)
    options = dict(model["backbone"])
    fits = options["type"] == kind and all(options.get(key, False) == value for key, value in extra.items())
    turned = bool(options.get("reversed_time"))
    if not fits or (layout != "sit" and turned):
        raise UserError(f"{source} holds a {options['type']}{' of reversed time' * turned}; the layout {layout!r} is "
                        f"that of a {kind}{' of reversed time' * bool(extra)}.")  # fmt: skip
    channels = state["x_embedder.proj.weight"].shape[1]
    side = model["resolution"] // DOWNSAMPLE
    backbone = build(BACKBONES, options, where="backbone", input_size=side, in_channels=channels)
    zeros = torch.zeros(1, backbone.prefix, backbone.hidden_size)
    state = {"pos_embed": torch.cat([zeros, backbone.pos_embed], dim=1), **state}
    buffer = io.BytesIO()
    torch.save({weights: state}, buffer)
    checkpoint.write_file(Path(target), buffer.getbuffer())
    return len(state)
