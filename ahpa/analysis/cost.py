"""What a model costs: parameters of each part, and forward multiply-accumulates in both countings of the field.

Papers print "GFLOPs" that are multiply-accumulates (MACs). Counted with attention's two matrix products SiT-XL/2 has
118.6 GMAC, without them (as fvcore does with fused attention) 114.5; the two must not be compared.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..registry.contracts import Tokens


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def counted(call) -> tuple[int, int]:
    """Multiply-accumulates of a call on the meta device -> (all, those of attention's two products, which are the only
    products of batches of matrices: 2 N^2 D a block)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    products = counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.bmm, 0)
    return counter.get_total_flops() // 2, products // 2


def forward_macs(backbone) -> tuple[int, int]:
    """The same of one image's forward pass, counted without computing."""
    import copy

    shadow = copy.deepcopy(backbone).to("meta")
    x = {name: torch.zeros(1, *shape, device="meta") for name, shape in shadow.streams.items()}
    t, cond = torch.zeros(1, device="meta"), shadow.blank_cond(1, "meta")
    return counted(lambda: shadow(x, t, cond))


def added_macs(model) -> dict[str, tuple[int, int]]:
    """What alignment adds to a training step's forward pass, an image: the heads ('projector'), and the networks of each
    prior that has one of its own. An autoencoder is not counted: latents and its levels come from the one pass."""
    import copy

    found = {}
    for name, alignment in model.alignments.items():
        if not hasattr(alignment, "projector"):
            continue
        head, backbone = copy.deepcopy(alignment.projector).to("meta"), model.backbone
        prefix = backbone.prefix if getattr(getattr(alignment, "router", None), "prefix", ()) else 0
        count_N = backbone.grid[0] * backbone.grid[1] + prefix
        tokens = Tokens(torch.zeros(1, count_N, backbone.hidden_size, device="meta"), prefix, backbone.grid)
        found[f"projector of {name}"] = counted(lambda head=head, tokens=tokens: head(tokens))
    for name, prior in model.priors.items():
        call = prior.probe(model.backbone)
        if call is not None:
            found[f"prior {name}"] = counted(call)
    return found


def backbone_macs(backbone) -> int:
    """Multiply-accumulates of one image's forward pass, attention's products included."""
    return forward_macs(backbone)[0]


def parameter_counts(model) -> dict[str, int]:
    """Trainable parameters: the backbone, and each kind of part summed over the alignments."""
    parts = {"backbone": count(model.backbone)}
    for alignment in model.alignments.values():
        for kind in ("router", "projector"):
            if hasattr(alignment, kind):
                parts[kind] = parts.get(kind, 0) + count(getattr(alignment, kind))
        critics = sum(count(criterion) for criterion in alignment.criteria.values())
        if critics:
            parts["criteria"] = parts.get("criteria", 0) + critics
    return parts


def human(number: int) -> str:
    """130501000 -> '130.50 M', 100 -> '100'."""
    return f"{number / 1e6:.2f} M" if number >= 1e4 else str(number)


def cost_report(model, *, short: bool = False) -> str:
    """Parameters (of the backbone, the router, the projector) and forward GMACs, one line or several."""
    parts = {name: human(value) for name, value in parameter_counts(model).items()}
    total, products = forward_macs(model.backbone)
    both, bare = total / 1e9, (total - products) / 1e9
    if short:
        shown = ", ".join(f"{name} {value}" for name, value in parts.items())
        return f"{shown} parameters; backbone forward {both:.4g} GMAC an image ({bare:.4g} without attention products)"
    lines = [f"{name + ' parameters':24s}{value}" for name, value in parts.items()]
    lines.append(f"{'forward GMAC an image':24s}{both:.3f} with attention's products, {bare:.3f} without")
    for name, (all_macs, product_macs) in added_macs(model).items():
        lines.append(f"{'+ ' + name:24s}{all_macs / 1e9:.3f} and {(all_macs - product_macs) / 1e9:.3f} in training")
    lines.append(f"{'taps':24s}{', '.join(str(tap) for tap in sorted(model.taps)) or 'none'} of {model.backbone.depth}")
    for name, alignment in model.alignments.items():
        groups = getattr(getattr(alignment, "router", None), "groups", {})
        shown = "; ".join(f"{group}: {', '.join(levels)}" for group, levels in groups.items())
        source = f"{alignment.source} ({shown})" if alignment.source else "the other views"
        lines.append(f"{'alignment ' + name:24s}block {alignment.tap} <- {source}")
    return "\n".join(lines)
