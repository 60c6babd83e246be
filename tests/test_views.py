"""Several noisings of each image, aligned with each other (DUPA), written out: the views of the
flows, and the alignment on a backbone, without the engine."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.backbones import moved

from ahpa.registry import ALIGNMENTS, FLOW_LOSSES, FLOWS, PAIR_LOSSES, ConfigError, build
from ahpa.registry.contracts import (
    BackboneOutput,
    Clean,
    Condition,
    LevelSpec,
    PairLoss,
    Progress,
    Tap,
    TargetView,
    TextCond,
)
from ahpa.testing.common import toy_geometry

SIZES = dict(depth=5, encoder_depth=2, hidden_size=48, num_heads=4)
DDT = dict(type="DDT", num_classes=10, **SIZES)
DIT = {**DDT, "type": "DDTDiT"}
MMDIT = dict(type="DDTMMDiT", text_dim=20, **SIZES)
GEOMETRY = toy_geometry(width=48, depth=5)
PROJECTOR = dict(type="MLPProjector", hidden_dim=24, gain=0.5)
SECOND = frozenset({Tap(2)})
VIEWS = dict(type="ViewAlignment", tap=2, out_dim=12, weight=0.5, projector=PROJECTOR)


def flow_of(name="Flow", *, views=2, geometry=GEOMETRY):
    return build(FLOWS, dict(type=name, views=views), geometry=geometry)


def alignment_of(flow, priors=None, **changes):
    torch.manual_seed(0)
    parts = dict(name="views", geometry=GEOMETRY, flow=flow, priors=priors or {})
    own = build(ALIGNMENTS, {**VIEWS, **changes}, where="model.alignments.views", **parts)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return own


def step_of(backbone, flow, *, batch=2, taps=SECOND):
    """A training step up to the backbone's output, of random latents."""
    draw = torch.Generator().manual_seed(4)
    streams = {"image": torch.randn(batch, 4, 8, 8, generator=draw)}
    if backbone.takes == "prompts":
        label = TextCond(torch.randn(batch, 5, 20, generator=draw))
    else:
        label = torch.randint(10, (batch,), generator=draw)
    noised = flow.sample(streams, draw)
    cond = Condition(label).repeat(noised.views)
    out = backbone(noised.x, noised.t, cond.value, taps=taps)
    return TargetView(clean=Clean(streams=streams), noised=noised, cond=cond, out=out)


@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_written_out(views):
    flow = flow_of(views=views)
    own, view = alignment_of(flow), step_of(moved(DDT), flow)
    losses = own(view, {}, Progress())
    z = [own.projector.mlp(part) for part in view.out.taps[Tap(2)].chunk(views)]
    cosines = [F.cosine_similarity(z[i], z[j], -1).mean() for i in range(views) for j in range(i)]
    wanted = 1 - torch.stack(cosines).mean()
    assert [(term.name, term.weight) for term in losses.terms] == [("views/cosine", 0.5)]
    torch.testing.assert_close(losses.terms[0].value, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.total, 0.5 * wanted, rtol=1e-4, atol=1e-6)
    assert not losses.diagnostics and own.reads == {} and own.taps == {Tap(2)}

    flow_loss = build(FLOW_LOSSES, dict(type="FlowMatchingLoss"), geometry=GEOMETRY, flow=flow)
    pairs = zip(
        view.out.pred["image"].chunk(views), view.noised.target["image"].chunk(views), strict=True
    )
    each = torch.stack([(a - b).square().mean() for a, b in pairs])
    torch.testing.assert_close(flow_loss(view).total, each.mean())


def test_prefix_tokens_are_left_out():
    flow = flow_of()
    own, view = alignment_of(flow), step_of(moved(DDT), flow)
    tokens = view.out.taps[Tap(2)]
    longer = torch.cat([torch.ones(len(tokens), 1, 48), tokens], 1)
    out = BackboneOutput(view.out.pred, {Tap(2): longer}, 1, (4, 4))
    with_prefix = dataclasses.replace(view, out=out)
    assert torch.equal(own(with_prefix, {}, Progress()).total, own(view, {}, Progress()).total)


@pytest.mark.parametrize("backbone", [DIT, MMDIT], ids=["DDTDiT", "DDTMMDiT"])
def test_views_on_the_other_transformers(backbone):
    net = moved(backbone)
    geometry = toy_geometry(width=48, depth=5, out_channels=net.out_channels)
    name, loss = ("DiscreteFlow", "HybridLoss") if backbone is DIT else ("Flow", "FlowMatchingLoss")
    flow = flow_of(name, geometry=geometry)
    own, view = alignment_of(flow), step_of(net, flow)
    flow_loss = build(FLOW_LOSSES, dict(type=loss), geometry=geometry, flow=flow)
    losses = own(view, {}, Progress())
    a, b = (own.projector.mlp(part) for part in view.out.taps[Tap(2)].chunk(2))
    wanted = 0.5 * (1 - F.cosine_similarity(a, b, dim=-1).mean())
    torch.testing.assert_close(losses.total, wanted, rtol=1e-4, atol=1e-6)
    (losses + flow_loss(view)).total.backward()
    trained = [*net.parameters(), *own.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained if p.requires_grad)


@pytest.mark.parametrize("views", [2, 3])
def test_the_hybrid_loss_of_views_is_the_mean_of_each_views(views):
    """Each view's own loss on its own step and noise, as a flow of one view has it."""
    geometry = toy_geometry(width=48, depth=5, out_channels=8)
    flow = flow_of("DiscreteFlow", views=views, geometry=geometry)
    streams = {"image": torch.randn(4, 4, 8, 8)}
    noised = flow.sample(streams, torch.Generator().manual_seed(0))
    assert noised.views == views and len(set(noised.t.tolist())) == 4 * views
    torch.testing.assert_close(noised.t * 1000, (noised.t * 1000).round())
    assert all(torch.equal(part, streams["image"]) for part in noised.data["image"].chunk(views))
    pred = torch.randn(4 * views, 8, 8, 8)
    loss = build(FLOW_LOSSES, dict(type="HybridLoss"), geometry=geometry, flow=flow)

    def terms(noised, pred):
        labels = torch.zeros(len(pred), dtype=torch.long)
        out = BackboneOutput({"image": pred}, {}, 0, (4, 4))
        view = TargetView(Clean(streams=streams), noised, Condition(labels), out)
        return {term.name: term.weight * term.value for term in loss(view).terms}

    whole = terms(noised, pred)
    each = []
    for i in range(views):
        rows = slice(4 * i, 4 * i + 4)
        parts = {}
        for name in ("x", "target", "data", "noise"):
            streams_of = dataclasses.asdict(noised)[name]
            parts[name] = {"image": streams_of["image"][rows]}
        own = dataclasses.replace(noised, t=noised.t[rows], views=1, **parts)
        each.append(terms(own, pred[rows]))
    assert set(whole) == {"flow", "flow/vlb"}
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]).mean())


def test_one_view_draws_what_it_drew_before():
    """The step first, then the noise: the numbers of a generator by themselves."""
    flow = flow_of("DiscreteFlow", views=1)
    noised = flow.sample({"image": torch.zeros(5, 4, 2, 2)}, torch.Generator().manual_seed(7))
    stream = torch.Generator().manual_seed(7)
    assert torch.equal(noised.t, torch.randint(1000, (5,), generator=stream).float() / 1000)
    noise = torch.randn(5, 4, 2, 2, generator=stream)
    assert torch.equal(noised.noise["image"], noise) and noised.views == 1


@pytest.mark.parametrize("name", ["Flow", "DiscreteFlow"])
@pytest.mark.parametrize("views", [0, 1.5, True])
def test_a_flow_refuses_other_numbers_of_views(name, views):
    with pytest.raises(ConfigError, match="views"):
        flow_of(name, views=views)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_each_view_has_its_own_time_and_noise(views):
    data = {"image": torch.randn(4, 4, 8, 8)}
    noised = flow_of(views=views).sample(data, torch.Generator().manual_seed(0))
    assert noised.views == views and noised.x["image"].shape == (4 * views, 4, 8, 8)
    assert len(set(noised.t.tolist())) == 4 * views
    for part in noised.data["image"].chunk(views):
        assert torch.equal(part, data["image"])
    s = noised.t[:, None, None, None]
    wanted = (1 - s) * noised.data["image"] + s * noised.noise["image"]
    torch.testing.assert_close(noised.x["image"], wanted)


def test_both_sides_learn():
    """No stop-gradient: holding the other view fixed gives another gradient."""
    flow = flow_of()
    own, view = alignment_of(flow), step_of(moved(DDT), flow)
    own(view, {}, Progress()).total.backward()
    grads = [p.grad.clone() for p in own.projector.parameters()]
    own.zero_grad(set_to_none=True)
    a, b = own.projector.mlp(view.out.taps[Tap(2)].detach()).chunk(2)
    (0.5 * (1 - F.cosine_similarity(a, b.detach(), dim=-1).mean())).backward()
    held = [p.grad for p in own.projector.parameters()]
    assert any(not torch.allclose(x, y, rtol=1e-3) for x, y in zip(grads, held, strict=True))


def test_a_routed_alignment_beside_it_sees_all_views():
    """Levels of the images, repeated for the views, with each view's own time."""
    flow = flow_of(views=3)
    levels = {f"level{i}": LevelSpec(6, 8) for i in range(8)}
    parts = dict(name="ahpa", geometry=GEOMETRY, flow=flow, priors={"vae": levels})
    cfg = dict(type="Alignment", tap=1, source="vae", router=dict(type="MLPRouter"))
    routed = build(ALIGNMENTS, cfg, **parts)
    view = step_of(moved(DDT), flow, taps=frozenset({Tap(1), Tap(2)}))
    features = {name: torch.randn(2, 6, 8, 8).repeat(3, 1, 1, 1) for name in levels}
    shown = Progress(diagnose=True)
    losses = alignment_of(flow)(view, {}, shown) + routed(view, {"vae": features}, shown)
    assert [term.name for term in losses.terms] == ["views/cosine", "ahpa/cosine"]
    assert losses.total.isfinite()


@PAIR_LOSSES.register_module()
class SumAndGap(PairLoss):
    """Two items of a pair."""

    unweighted = ("gap",)

    def forward(self, pred, target, token_weights=None):
        return {"sum": (pred + target).mean(), "gap": (pred - target).square().mean()}


def test_a_criterion_with_several_items_is_averaged_over_the_pairs_item_by_item():
    flow = flow_of(views=3)
    criteria = dict(both=dict(type="SumAndGap", weight=0.2))
    own, view = alignment_of(flow, criteria=criteria), step_of(moved(DDT), flow)
    losses = own(view, {}, Progress())
    z = own.projector.mlp(view.out.taps[Tap(2)]).chunk(3)
    pairs = [(z[0], z[1]), (z[0], z[2]), (z[1], z[2])]
    weights = {term.name: term.weight for term in losses.terms}
    assert weights == {"views/both/sum": 0.5 * 0.2, "views/both/gap": 1.0}
    total, gap = (term.value for term in losses.terms)
    torch.testing.assert_close(total, sum((a + b).mean() for a, b in pairs) / 3)
    torch.testing.assert_close(gap, sum((a - b).square().mean() for a, b in pairs) / 3)


def test_the_projectors_gain_is_reduced():
    wide = dict(type="MLPProjector", depth=3, hidden_dim=512)
    found = {}
    for gain in (1.0, 0.25):
        own = alignment_of(flow_of(), projector={**wide, "gain": gain})
        found[gain] = float(own.projector.mlp[2].weight.detach().std())
    assert 0.5 < found[0.25] / found[1.0] < 0.95  # 0.05 of noise was added to both


def test_summary_and_probes():
    own = alignment_of(flow_of())
    assert own.summary() == "block 2 <- the other views"
    assert own.probes()["projector"]().shape == (1, 16, 12)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(tap=6), r"1\.\.5"),
        (dict(source="vae"), "source"),
        (dict(criteria={}), "criteria"),
        (dict(out_dim=0), "out_dim"),
    ],
    ids=str,
)
def test_mistakes(changes, word):
    with pytest.raises(ConfigError, match=word):
        alignment_of(flow_of(), **changes)


def test_one_view_is_not_enough():
    with pytest.raises(ConfigError, match=r"model.alignments.views: .*model.flow.views"):
        alignment_of(flow_of(views=1))
