"""Every router with every prior, every backbone and every pair loss: each combination builds, steps and trains.

The backbone's pass and the prior's features are computed once for a pair of them, then every router and loss is tried.
"""

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.losses.alignment import Alignment
from ahpa.registry import AUTOENCODERS, BACKBONES, FLOWS, LOSSES, PRIORS, ROUTERS, build
from ahpa.registry.contracts import Step

BATCH = 2
VIT = dict(type="TimmEncoder", model="vit_tiny_patch16_224", weights="random", precision="fp32",
           options=dict(embed_dim=16, depth=1, num_heads=2))  # fmt: skip
SMALL = dict(depth=2, hidden_size=24, num_heads=2)
BACKBONE = {
    "SiT": dict(SMALL, num_classes=10), "DiT": dict(SMALL, num_classes=10), "DDT": dict(SMALL, num_classes=10, encoder_depth=1),
    "ClassStreamSiT": dict(SMALL, num_classes=10, class_width=16), "MMDiT": dict(SMALL, text_dim=12),
    "ClassStreamDiT": dict(SMALL, num_classes=10, class_width=16), "DDTDiT": dict(SMALL, num_classes=10, encoder_depth=1),
    "ClassStreamMMDiT": dict(SMALL, text_dim=12, class_width=16), "DDTMMDiT": dict(SMALL, text_dim=12, encoder_depth=1)}  # fmt: skip
PRIOR = {  # options, and two groups of levels (a level may stand in both)
    "VAETaps": (dict(), "4/4"), "TimmEncoder": (VIT, "patch"),
    "OpenCLIPEncoder": (dict(model="ViT-B-32", weights="random", precision="fp32",
                             sizes=dict(embed_dim=8, width=64, layers=1, patch_size=16)), "patch"),
    "LatentPrior": (dict(), "latent"), "TeacherPrior": (dict(block=2), "teacher"),
    "SpatialNorm": (dict(prior=dict(type="VAETaps")), "4/4"), "Pooled": (dict(prior=dict(type="VAETaps")), "4/4"), "ChannelNorm": (dict(prior=VIT), "patch"),
    "CombinedPrior": (dict(priors=dict(vit=VIT, vae=dict(type="VAETaps"))), dict(mid=["vit.patch"], deep=["vae.mid.res1"]))}  # fmt: skip
LOSS = {"AdversarialLoss": dict(width=8, warmup=0, every=1)}


def own(registry):
    """The names of ahpa's components of a kind."""
    registry.import_from_location()
    return {name for name, component in registry.module_dict.items() if component.__module__.startswith("ahpa.")}


def test_none_is_left_out():
    assert own(BACKBONES) == set(BACKBONE) and own(PRIORS) == set(PRIOR)


@pytest.fixture(scope="module")
def tokenizer():
    return build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled"))


def make_step(backbone, prior, flow, tokenizer):
    images = torch.stack([ShapesDataset()[i]["image"] for i in range(BATCH)]).float() / 255
    step = Step(
        batch={}, images=images, generator=torch.Generator().manual_seed(0), flow=flow, ema=backbone, diagnose=True
    )
    step.encoded = tokenizer.encode(images, getattr(prior, "shared_levels", ()))
    data = {name: step.encoded.sample(step.generator) if name == "image" else torch.randn(BATCH, *shape)
            for name, shape in backbone.streams.items()}  # fmt: skip
    step.noisy, step.cond = flow.sample(data, step.generator), backbone.blank_cond(BATCH, "cpu")
    step.out = backbone(step.noisy.x, step.noisy.t, step.cond, taps=frozenset({1}))
    return step


@pytest.mark.parametrize("prior", PRIOR)
@pytest.mark.parametrize("backbone", BACKBONE)
def test_all_routers_and_losses(backbone, prior, tokenizer):
    torch.manual_seed(0)
    net = build(BACKBONES, dict(type=backbone, **BACKBONE[backbone]), input_size=8, in_channels=4)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    flow = build(FLOWS, dict(type="DiscreteFlow" if net.time_scale > 1 else "Flow"))
    options, groups = PRIOR[prior]
    groups = dict(mid=[groups], deep=[groups]) if isinstance(groups, str) and "/" not in groups else groups
    source = build(PRIORS, {**options, "type": prior})
    source.bind(tokenizer=tokenizer, backbone=net)
    spec = source.spec(net)
    routers, losses = sorted(own(ROUTERS)), sorted(own(LOSSES))
    assert len(routers) >= 7 and len(losses) >= 6
    probe = build(
        ROUTERS, dict(type="StaticRouter", groups=groups), spec=spec, grid=net.grid, content_dim=net.hidden_size
    )
    source.request(probe.used_levels)
    step = make_step(net, source, flow, tokenizer)
    step.features["p"] = source(step)
    for router in routers:
        for loss in losses:
            alignment = Alignment(
                name="main", spec=spec, backbone=net, tap=1, source="p", router=dict(type=router, groups=groups),
                projector=dict(type="ConvProjector"), criteria=dict(one=dict(type=loss, **LOSS.get(loss, {}))))  # fmt: skip
            terms = alignment(step)
            assert all(value.isfinite().all() for value in terms.values()), (router, loss)
            total = sum(value for name, value in terms.items() if "loss" in name)
            trained = dict(alignment.named_parameters())
            grads = torch.autograd.grad(
                total, [*trained.values(), step.out.taps[1].tokens], retain_graph=True, allow_unused=True
            )
            assert all(grad is not None and grad.isfinite().all() for grad in grads[len(trained) :]), (router, loss)
            lost = [
                name
                for name, grad in zip(trained, grads, strict=False)
                if grad is None and ".router." not in f".{name}"
            ]
            assert not lost, (router, loss, lost)
