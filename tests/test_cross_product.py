"""Every router with every prior, every backbone and every pair loss: each combination builds,
steps and trains.

The backbone's pass and the prior's features are computed once for a pair of them, then every
router and loss is tried.
"""

import pytest
import torch
from support.models import VIT, WORDS, compute, small_model

from ahpa.engine.assembly import build_alignment
from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import BACKBONES, PAIR_LOSSES, PRIORS, REGULARISERS, ROUTERS
from ahpa.registry.contracts import Progress, Tap

SMALL = dict(depth=2, hidden_size=24, num_heads=2)
BACKBONE = {
    "SiT": dict(num_classes=10),
    "DiT": dict(num_classes=10),
    "MMDiT": dict(text_dim=20),
    "ClassStreamSiT": dict(num_classes=10, class_width=16),
    "ClassStreamDiT": dict(num_classes=10, class_width=16),
    "ClassStreamMMDiT": dict(text_dim=20, class_width=16),
    "DDT": dict(num_classes=10, encoder_depth=1),
    "DDTDiT": dict(num_classes=10, encoder_depth=1),
    "DDTMMDiT": dict(text_dim=20, encoder_depth=1),
}
CLIP = dict(
    model="ViT-B-32",
    weights="random",
    precision="fp32",
    sizes=dict(embed_dim=8, width=64, layers=1, patch_size=16),
)
TAPS = dict(type="VAETaps")


def twice(level):
    """Two groups that both hold the level."""
    return dict(mid=[level], deep=[level])


PRIOR = {  # options, and two groups of levels
    "VAETaps": (dict(), "4/4"),
    "TimmEncoder": (VIT, twice("patch")),
    "OpenCLIPEncoder": (CLIP, twice("patch")),
    "LatentPrior": (dict(), twice("latent")),
    "TeacherPrior": (dict(block=2), twice("teacher")),
    "BlockPrior": (dict(block=2), twice("block")),
    "SpatialNorm": (dict(prior=TAPS), "4/4"),
    "Pooled": (dict(prior=TAPS), "4/4"),
    "ChannelNorm": (dict(prior=VIT), twice("patch")),
    "CombinedPrior": (
        dict(priors=dict(vit=VIT, vae=TAPS)),
        dict(mid=["vit.patch"], deep=["vae.mid.res1"]),
    ),
}
LOSS = {"AdversarialLoss": dict(width=8, warmup=0, every=1)}
OF_ATTENTION = {"AttentionDistillation"}  # compares logits [B, H, N, N], not tokens


def own(registry):
    """The names of ahpa's components of a kind."""
    registry.import_from_location()
    found = registry.module_dict.items()
    return {name for name, component in found if component.__module__.startswith("ahpa.")}


def test_none_is_left_out():
    assert own(BACKBONES) == set(BACKBONE) and own(PRIORS) == set(PRIOR)
    assert len(own(ROUTERS)) >= 8 and len(own(PAIR_LOSSES)) >= 7
    assert own(PAIR_LOSSES) >= OF_ATTENTION


def model_section(backbone, *, priors, alignments):
    """The model section of a small network with these parts."""
    network = dict(type=backbone, **SMALL, **BACKBONE[backbone])
    model = dict(backbone=network, priors=dict(priors), alignments=alignments)
    if "text_dim" in network:
        model["conditioner"] = WORDS
    elif backbone.endswith("DiT"):
        model["flow"] = dict(type="DiscreteFlow")
        model["flow_loss"] = dict(type="HybridLoss")
    if "class_width" in network:
        model["priors"]["stream"] = VIT
        model["streams"] = dict(cls=dict(source="stream", level="cls"))
    return model


def model_of(backbone, prior):
    """A model whose one alignment reads both groups of the prior through a static router."""
    options, groups = PRIOR[prior]
    router = dict(type="StaticRouter", groups=groups)
    alignments = dict(probe=dict(tap=1, source="p", router=router))
    priors = dict(p={**options, "type": prior})
    return small_model(**model_section(backbone, priors=priors, alignments=alignments))


def check_gradients(alignment, losses, tokens, what):
    """Every trained part, but possibly the router, and the tapped tokens have finite gradients."""
    trained = dict(alignment.named_parameters())
    grads = torch.autograd.grad(
        losses.total, [*trained.values(), tokens], retain_graph=True, allow_unused=True
    )
    *of_parts, of_tokens = grads
    assert of_tokens is not None and of_tokens.isfinite().all(), what
    for name, grad in zip(trained, of_parts, strict=True):
        if grad is None:
            assert name.startswith("router."), (*what, name)
        else:
            assert grad.isfinite().all(), (*what, name)


@pytest.mark.parametrize("prior", PRIOR)
@pytest.mark.parametrize("backbone", BACKBONE)
def test_all_routers_and_losses(backbone, prior):
    model = model_of(backbone, prior)
    shown = Progress(0, 10, True)
    seen = compute(model, synthetic_batch(model), progress=shown)
    levels = {name: part.levels for name, part in model.parts.priors.items()}
    parts = (model.geometry, model.flow, levels)
    tokens = seen.view.out.taps[Tap(1)]
    for router in sorted(own(ROUTERS)):
        for loss in sorted(own(PAIR_LOSSES) - OF_ATTENTION):
            cfg = dict(
                tap=1,
                source="p",
                router=dict(type=router, groups=PRIOR[prior][1]),
                projector=dict(type="ConvProjector"),
                criteria=dict(one=dict(type=loss, **LOSS.get(loss, {}))),
            )
            alignment = build_alignment("main", cfg, *parts)
            losses = alignment(seen.view, seen.features, shown)
            values = losses.scalars().values()
            assert all(value.isfinite().all() for value in values), (router, loss)
            check_gradients(alignment, losses, tokens, (router, loss))


@pytest.mark.parametrize("backbone", BACKBONE)
def test_losses_of_attention_and_regularisers(backbone):
    """They need no router and no projector; attention of the prior's only block supervises."""
    alignments = {
        name: dict(type="Regularisation", tap=1, regulariser=dict(type=name))
        for name in own(REGULARISERS)
    }
    for name in OF_ATTENTION:
        criteria = dict(one=dict(type=name))
        place = dict(blocks=[1], source="vit", levels=["attention1"])
        alignments[name] = dict(type="AttentionAlignment", criteria=criteria, **place)
    priors = dict(vit={**VIT, "attention": [1]})
    model = small_model(**model_section(backbone, priors=priors, alignments=alignments))
    seen = compute(model, synthetic_batch(model))
    assert {term.name.split("/")[0] for term in seen.losses.terms} >= set(alignments)
    for name, alignment in model.alignments.items():
        losses = alignment(seen.view, seen.features, Progress())
        (tap,) = alignment.taps
        check_gradients(alignment, losses, seen.view.out.taps[tap], (name,))
