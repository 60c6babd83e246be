"""What a model costs: parameters of each part, and multiply-accumulates (MACs) of a forward pass.

Papers print "GFLOPs" that are MACs, counted in two ways: with the two matrix products of attention
SiT-XL/2 has 118.6 GMAC, without them 114.4 (fvcore, which skips fused attention and adds 0.07 for
LayerNorms, gives 114.5). Both are reported, since different countings must not be compared.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..engine.denoiser import AlignedDenoiser
from ..registry.contracts import (
    WHOLE,
    Alignment,
    Backbone,
    Projector,
    Router,
    TokenPlan,
    TokenRouting,
)

GIGA = 1e9
COLUMN = 24  # characters of the report's first column


class Macs(NamedTuple):
    """Multiply-accumulates of a call.

    Attributes:
        total: All of them.
        attention: Those of attention's two matrix products, 2 N^2 D a block.
    """

    total: int
    attention: int

    @property
    def without_attention(self) -> int:
        """All but those of attention's matrix products."""
        return self.total - self.attention


def count_macs(call: Callable[[], Any]) -> Macs:
    """Count the multiply-accumulates of a call, which may run on the meta device.

    Attention is counted as products of batches of matrices, the only ones in these models.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: only where it is used

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    by_operator = counter.get_flop_counts().get("Global", {})
    attention = by_operator.get(torch.ops.aten.bmm, 0)
    return Macs(counter.get_total_flops() // 2, attention // 2)


def forward_macs(backbone: Backbone, plan: TokenPlan = WHOLE) -> Macs:
    """Count the MACs of a backbone's forward pass for one image, without computing it.

    Args:
        backbone: The backbone, on any device.
        plan: Which tokens are in a block, on the meta device.
    """
    shadow = copy.deepcopy(backbone).to("meta")
    x = {name: torch.zeros(1, *shape, device="meta") for name, shape in shadow.streams.items()}
    t = torch.zeros(1, device="meta")
    cond = shadow.blank_cond(1, "meta")
    return count_macs(lambda: shadow(x, t, cond, plan=plan))


def route_macs(model: AlignedDenoiser, routing: TokenRouting) -> Macs:
    """Count the MACs of a forward pass of training, in which tokens skip blocks, for one image."""
    shapes = model.geometry.streams.items()
    streams = {name: torch.zeros(1, *shape) for name, shape in shapes}
    rng = torch.Generator().manual_seed(0)
    route = routing.draw(model.flow.sample(streams, rng), rng)
    return forward_macs(model.backbone, TokenPlan(route._replace(kept=route.kept.to("meta"))))


def alignments_of(model: AlignedDenoiser) -> dict[str, Alignment]:
    """Return the alignments of a model by name."""
    parts = model.alignments.items()
    return {name: part for name, part in parts if isinstance(part, Alignment)}


def added_macs(model: AlignedDenoiser) -> dict[str, Macs]:
    """Count what the alignments add to the forward pass of a training step, for one image.

    The heads are those that `Alignment.probes` lists, the priors' networks those that
    `Prior.probe` gives. A tokenizer is not counted: the latents and its levels come from one pass.

    Args:
        model: A model on any device; nothing is computed.

    Returns:
        {"<part> of <alignment>" or "prior <name>": MACs}.
    """
    found = {}
    for name, alignment in alignments_of(model).items():
        for part, call in alignment.probes().items():
            found[f"{part} of {name}"] = count_macs(call)
    for name, prior in model.parts.priors.items():
        probe = prior.probe(model.backbone)
        if probe is not None:
            found[f"prior {name}"] = count_macs(probe)
    return found


def count_parameters(module: nn.Module) -> int:
    """Count the numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_counts(model: AlignedDenoiser) -> dict[str, int]:
    """Count the parameters of the backbone and of each kind of part of the alignments.

    A kind is the name of an alignment's submodule, such as "router"; kinds are summed over the
    alignments. Routers and projectors are listed even if they have no parameters. Parameters that
    an alignment holds itself are listed as "alignment".
    """
    counts = {"backbone": count_parameters(model.backbone)}
    for alignment in alignments_of(model).values():
        for kind, part in alignment.named_children():
            count = count_parameters(part)
            if count or isinstance(part, (Router, Projector)):
                counts[kind] = counts.get(kind, 0) + count
        own = sum(parameter.numel() for parameter in alignment.parameters(recurse=False))
        if own:
            counts["alignment"] = counts.get("alignment", 0) + own
    return counts


def human(number: int) -> str:
    """Format a count: 130501000 -> "130.50 M", 100 -> "100"."""
    return f"{number / 1e6:.2f} M" if number >= 1e4 else str(number)


def cost_report(
    model: AlignedDenoiser,
    *,
    short: bool = False,
) -> str:
    """Describe what training a model costs.

    Args:
        model: The model.
        short: Whether to return one line (parameters, GMACs of the backbone) instead of a table
            that also lists what the alignments add, the taps, and the alignments themselves.
    """
    counts = {name: human(count) for name, count in parameter_counts(model).items()}
    macs = forward_macs(model.backbone)
    total = macs.total / GIGA
    bare = macs.without_attention / GIGA
    if short:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        return (
            f"{shown} parameters; backbone forward {total:.4g} GMAC an image "
            f"({bare:.4g} without attention products)"
        )
    rows = [(f"{name} parameters", count) for name, count in counts.items()]
    forward = f"{total:.3f} with attention's products, {bare:.3f} without"
    rows.append(("forward GMAC an image", forward))
    if model.token_routing is not None:
        routed = route_macs(model, model.token_routing)
        bare = routed.without_attention / GIGA
        rows.append(("  on the tokens' route", f"{routed.total / GIGA:.3f} and {bare:.3f}"))
    for name, added in added_macs(model).items():
        total = added.total / GIGA
        bare = added.without_attention / GIGA
        rows.append((f"+ {name}", f"{total:.3f} and {bare:.3f} in training"))
    rows.append(("taps", taps_text(model)))
    for name, alignment in alignments_of(model).items():
        rows.append((f"alignment {name}", alignment.summary()))
    return "\n".join(f"{name:{COLUMN}s}{text}" for name, text in rows)


def taps_text(model: AlignedDenoiser) -> str:
    """List the tapped blocks, such as "3, 8 (attention) of 12"."""
    names = []
    for tap in sorted(model.taps):
        kind = "" if tap.kind == "tokens" else f" ({tap.kind})"
        names.append(f"{tap.block}{kind}")
    return f"{', '.join(names) or 'none'} of {model.backbone.depth}"
