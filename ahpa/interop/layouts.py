"""The layouts of published checkpoints: which backbone they hold, and under which names the heads
of the alignment stand in them.

Our backbones use the published names, so only the heads are renamed. Must match the official codes
of SiT, DiT, REPA (also text to image), iREPA, SRA (on SiT and on DiT) and REG.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..registry import UserError, nearest

State = dict[str, Tensor]
Head = Mapping[str, str]
"""{name inside our projector: published key}; `{n}` in the key is the head's number, from 0."""


def head_of(layers: Mapping[str, str]) -> Head:
    """Return the names of a head's tensors, given {our layer: published layer}."""
    kinds = ("weight", "bias")
    return {f"{own}.{kind}": f"{key}.{kind}" for own, key in layers.items() for kind in kinds}


THREE_LAYERS = ("0", "2", "4")
MLP = head_of({f"mlp.{i}": f"projectors.{{n}}.{i}" for i in THREE_LAYERS})
IREPA_HEADS = (  # a wrapper around a convolution, a linear layer or an MLP; its first code had none
    head_of({"out": "projectors.{n}.projection_layer"}),
    head_of({"linear": "projectors.{n}.projection_layer"}),
    head_of({f"mlp.{i}": f"projectors.{{n}}.projection_layer.{i}" for i in THREE_LAYERS}),
    MLP,
)
SRA_HEAD = head_of({"mlp.0": "ap_head.linear1", "mlp.2": "ap_head.linear2"})
HEAD_PREFIXES = ("projectors.", "ap_head.")
UNUSED = re.compile(r"joint_blocks\.\d+\.context_block\.attn\.ln_q\.(weight|bias)")
"""MMDiT's last text block has a norm of queries that it does not use; our backbone has none."""


class Layout(NamedTuple):
    """A published layout.

    Attributes:
        backbone: Registered name of the backbone.
        options: Its options beyond the sizes.
        heads: The kinds of head that it may hold; empty if it holds none.
        tokenizer: Config of the autoencoder that the official code samples with by default.
        variance: Whether the output has channels for a variance beside the prediction: "never",
            "dropped" (SiT's may, and its own sampling drops them), "optional" or "always".
    """

    backbone: str
    options: dict[str, Any]
    heads: tuple[Head, ...]
    tokenizer: dict[str, Any]
    variance: str


EMA_VAE = {"type": "KLAutoencoder", "source": "stabilityai/sd-vae-ft-ema"}
PER_CHANNEL_VAE = {  # iREPA's code normalises each channel of the latents
    "type": "KLAutoencoder",
    "source": "stabilityai/sd-vae-ft-mse",
    "statistics": "sd-imagenet",
}
FORMATS = {
    "sit": Layout("SiT", {"reversed_time": True}, (), EMA_VAE, "dropped"),
    "dit": Layout("DiT", {}, (), EMA_VAE, "optional"),
    "repa": Layout("SiT", {}, (MLP,), EMA_VAE, "never"),
    "irepa": Layout("SiT", {}, IREPA_HEADS, PER_CHANNEL_VAE, "never"),
    "sra": Layout("SiT", {}, (SRA_HEAD,), EMA_VAE, "never"),
    "sra-dit": Layout("DiT", {}, (SRA_HEAD,), EMA_VAE, "always"),
    "reg": Layout("ClassStreamSiT", {}, (MLP,), EMA_VAE, "never"),
    "repa-t2i": Layout("MMDiT", {}, (MLP,), EMA_VAE, "never"),
}


def layout_of(name: str) -> Layout:
    """Return a layout by name. Raises UserError that names the nearest ones."""
    if name not in FORMATS:
        close = nearest(name.lower(), [*FORMATS, "diffusers"])
        raise UserError(f"--format: {name!r} is unknown{close}")
    return FORMATS[name]


def formats_of(keys: Iterable[str]) -> list[str]:
    """Return the layouts that may have these keys: their kind of blocks, their kinds of head."""
    keys = set(keys)
    kinds = {"SiT", "DiT"}
    if any(key.startswith("joint_blocks.") for key in keys):
        kinds = {"MMDiT"}
    elif "cls_projectors2.weight" in keys:
        kinds = {"ClassStreamSiT"}
    elif not any(key.startswith("blocks.") for key in keys):
        return []
    heads = {key for key in keys if key.startswith(HEAD_PREFIXES)}

    def has_heads(layout: Layout) -> bool:
        return {key for head in find_heads(layout, heads) for key in head[0].values()} == heads

    return [name for name, form in FORMATS.items() if form.backbone in kinds and has_heads(form)]


def is_beside(key: str, wanted: Iterable[str]) -> bool:
    """Whether a published key is a head's, or an unused layer's, rather than the backbone's.

    Args:
        key: The published key.
        wanted: Keys of the backbone.
    """
    return key.startswith(HEAD_PREFIXES) or (bool(UNUSED.fullmatch(key)) and key not in wanted)


def find_heads(layout: Layout, keys: Iterable[str]) -> list[list[dict[str, str]]]:
    """Find the heads that published keys form.

    Args:
        layout: The layout.
        keys: Published keys.

    Returns:
        For each head, in order, {name inside our projector: published key} of each kind of head
        that it may be: a convolution and a linear layer of iREPA have the same keys.
    """
    present = set(keys)
    heads: list[list[dict[str, str]]] = []
    while True:
        named = [
            {own: key.format(n=len(heads)) for own, key in head.items()} for head in layout.heads
        ]
        complete = [head for head in named if present.issuperset(head.values())]
        if not complete:
            return heads
        heads.append(complete)
        present -= set(complete[0].values())


def check_beside(source: object, name: str, keys: Iterable[str]) -> None:
    """Check that what a file holds beside the backbone is complete heads of its layout.

    Raises:
        UserError: For a key that is not, with the formats that have it.
    """
    keys = sorted(key for key in keys if not UNUSED.fullmatch(key))
    known = {key for head in find_heads(FORMATS[name], keys) for key in head[0].values()}
    unknown = [key for key in keys if key not in known]
    if not unknown:
        return
    others = [other for other in FORMATS if find_heads(FORMATS[other], keys)]
    hint = f" Formats with such a head: {', '.join(others)}." if others else ""
    shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
    raise UserError(f"{source} is not of the format {name!r}: it has unknown {shown}.{hint}")


def heads_of_run(layout: Layout, alignments: Iterable[str], trained: State) -> State | None:
    """Return the heads of one of our runs under a layout's keys.

    Args:
        layout: The layout.
        alignments: Names of the run's alignments, in order.
        trained: The run's trained state dict.

    Returns:
        The heads; None if the run has none, or one that has no place in the layout.
    """
    found: State = {}
    number = 0
    for alignment in alignments:
        prefix = f"alignments.{alignment}.projector."
        own = {key.removeprefix(prefix): trained[key] for key in trained if key.startswith(prefix)}
        if not own:
            continue
        fitting = [head for head in layout.heads if head.keys() == own.keys()]
        keys = [key.format(n=number) for key in fitting[0].values()] if fitting else []
        if not keys or found.keys() & keys:
            return None
        found |= dict(zip(keys, (own[name] for name in fitting[0]), strict=True))
        number += 1
    return found or None
