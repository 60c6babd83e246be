"""The term against a router's collapse: written out, zero above the floor, and its effect on a
router that collapses."""

import math

import pytest
import torch
from support.values import make_view

from ahpa.alignment.collapse import collapse_figures, entropy_term, membership_figures
from ahpa.registry import ALIGNMENTS, ConfigError, build
from ahpa.registry.contracts import LevelSpec, Progress
from ahpa.testing.common import toy_geometry

INTRA = {
    "mid": [[0.97, 0.01, 0.02], [0.4, 0.3, 0.3]],
    "deep": [[0.5, 0.5], [1.0, 0.0]],
    "one": [[1.0], [1.0]],
}
INTER = [[0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]
SPEC = {f"level{i}": LevelSpec(6, 8) for i in range(4)}
GEOMETRY = toy_geometry(depth=2, width=5)
SHOWN = Progress(diagnose=True)


def given():
    intra = {group: torch.tensor(rows, requires_grad=True) for group, rows in INTRA.items()}
    return intra, torch.tensor(INTER, requires_grad=True)


def entropy_of(row):
    return -sum(p * math.log(p) for p in row if p)


@pytest.mark.parametrize("floor", [0.1, 0.5, 0.9, 1.0])
def test_the_floor_written_out(floor):
    intra, inter = given()
    want = 0.0
    for rows in (INTRA["mid"], INTRA["deep"], INTER):  # not the group of one level
        want += sum(max(0.0, floor * math.log(len(row)) - entropy_of(row)) for row in rows) / 2
    assert entropy_term(intra, inter, floor).item() == pytest.approx(want, abs=1e-6)


def test_betas_of_a_sigmoid_are_judged_by_their_shares():
    """.2 and .2 are as even as can be, .9 and .1 are not, whatever they sum to."""
    intra = {"mid": torch.tensor([[0.5, 0.5]]), "deep": torch.tensor([[0.5, 0.5]])}
    for betas, want in (
        ([0.2, 0.2], 1.0),
        ([0.9, 0.9], 1.0),
        ([0.9, 0.1], entropy_of([0.9, 0.1]) / math.log(2)),
    ):
        figures = collapse_figures(intra, torch.tensor([betas]), 0.9)
        assert figures["evenness_inter"].item() == pytest.approx(want, abs=1e-6)
        floor = entropy_term(intra, torch.tensor([betas]), 0.9).item()
        assert floor == pytest.approx(max(0.0, 0.9 - want) * math.log(2), abs=1e-6)


def test_without_a_floor_it_is_the_bonus():
    intra, inter = given()
    want = sum(sum(map(entropy_of, rows)) / 2 for rows in (*INTRA.values(), INTER))
    assert entropy_term(intra, inter, None).item() == pytest.approx(-want, abs=1e-6)


def test_only_rows_below_the_floor_have_a_gradient():
    """Each sample by itself: one with even weights does not pay for one without."""
    intra, inter = given()
    entropy_term(intra, inter, 0.5).backward()
    assert intra["mid"].grad[0].abs().sum() > 0 and (intra["mid"].grad[1] == 0).all()
    assert (intra["deep"].grad[0] == 0).all() and intra["deep"].grad.isfinite().all()
    assert (inter.grad[0] == 0).all() and inter.grad[1].abs().sum() > 0
    assert intra["one"].grad is None


def test_groups_of_one_level_have_no_floor():
    term = entropy_term({"one": torch.ones(2, 1)}, torch.ones(2, 1), 1.0)
    assert term.shape == () and float(term) == 0


def test_figures():
    intra, inter = given()
    out = collapse_figures(intra, inter, 0.6)
    deep = (entropy_of([0.5, 0.5]) + 0) / 2 / math.log(2)
    assert float(out["evenness_deep"]) == pytest.approx(deep, abs=1e-6)
    assert float(out["evenness"]) == pytest.approx(
        min(float(out[f"evenness_{n}"]) for n in ("inter", "mid", "deep"))
    )
    assert "evenness_one" not in out and float(out["below_floor"]) == 1
    assert (
        float(collapse_figures(intra, inter, 0.05)["below_floor"]) == 0.5
    )  # the second sample's deep alphas
    assert (
        float(out["alpha_max_mid"]) == pytest.approx((0.97 + 0.4) / 2)
        and int(out["alpha_top_mid"]) == 0
    )
    assert "below_floor" not in collapse_figures(intra, inter, None)
    assert not any(value.requires_grad for value in out.values())


def test_figures_of_a_membership():
    assert membership_figures({}) == {}
    hard = membership_figures(
        {"x": torch.tensor([1.0, 1.0, 0.0]), "y": torch.tensor([0.0, 0.0, 1.0])}
    )
    assert float(hard["entropy_membership"]) == pytest.approx(0, abs=1e-6)
    assert float(hard["effective_groups"]) == pytest.approx(
        math.exp(entropy_of([2 / 3, 1 / 3])), rel=1e-5
    )
    soft = membership_figures({name: torch.full((3,), 0.25) for name in "abcd"})
    assert float(soft["entropy_membership"]) == pytest.approx(math.log(4))
    assert float(soft["effective_groups"]) == pytest.approx(4)


def make(router=None, **options):
    cfg = dict(
        type="Alignment",
        tap=1,
        source="p",
        projector=dict(type="LinearProjector"),
        router=router or dict(type="MLPRouter", groups="2/2", hidden_dim=32),
        **options,
    )
    parts = dict(name="main", geometry=GEOMETRY, flow=None, priors={"p": SPEC})
    return build(ALIGNMENTS, cfg, **parts)


def make_step(seed, batch=16):
    """Level 0 is one vector at every place, which a projector's bias predicts; the others are
    noise."""
    draw = torch.Generator().manual_seed(seed)
    levels = {name: torch.randn(batch, 6, 4, 4, generator=draw) for name in SPEC}
    levels["level0"] = torch.linspace(-1, 1, 6)[:, None, None].expand(batch, 6, 4, 4)
    t = torch.rand(batch, generator=draw)
    tokens = torch.randn(batch, 16, 5, generator=draw)
    return make_view({1: tokens}, grid=(4, 4), t=t), {"p": levels}


def train(steps=300, **options):
    torch.manual_seed(0)
    router = dict(type="MLPRouter", groups="4", hidden_dim=32, zero_init=True)
    alignment = make(router=router, **options)
    slow = dict(params=alignment.router.parameters())
    fast = dict(params=alignment.projector.parameters(), lr=0.05)
    optimizer = torch.optim.Adam([fast, slow], lr=5e-3)
    for seed in range(steps):
        optimizer.zero_grad()
        alignment(*make_step(seed), Progress()).total.backward()
        optimizer.step()
    scalars = alignment(*make_step(9999), SHOWN).scalars()
    return {name: float(value) for name, value in scalars.items()}


@pytest.mark.parametrize("router_grad", ["target", "aux"])
def test_a_router_collapses_without_a_floor_and_stays_above_it_with_one(router_grad):
    bare = train(router_grad=router_grad)
    assert bare["main/entropy_g1"] < 0.1 and bare["main/alpha_top_g1"] == 0, "the constant level"
    assert bare["main/constant_cosine"] > 0.95
    held = train(router_grad=router_grad, entropy_floor=0.5, entropy_weight=1.0)
    assert 0.49 < held["main/evenness"] < 0.6, "at the floor, not pushed further than it"
    assert held["main/alpha_top_g1"] == 0 and held["loss/main/entropy"] < 0.02


def test_the_term_stands_in_the_log_beside_its_figures():
    out = make(entropy_floor=0.9, entropy_weight=0.3)(*make_step(0), SHOWN)
    figures = {"below_floor", "evenness", "evenness_mid", "alpha_max_mid"}
    assert {f"main/{figure}" for figure in figures} <= set(out.diagnostics)
    (term,) = (term for term in out.terms if term.name == "main/entropy")
    assert term.weight == 0.3
    partition = make(router=dict(type="PartitionRouter", groups="2/2"))(*make_step(0), SHOWN)
    assert {"main/entropy_membership", "main/effective_groups"} <= set(partition.diagnostics)
    frozen = make(router_grad="none")(*make_step(0), SHOWN)
    assert "main/evenness" not in frozen.diagnostics


STATIC = dict(type="StaticRouter", groups="2/2")
MISTAKES = [
    (dict(entropy_floor=0.5), "entropy_weight above 0"),
    (dict(entropy_floor=0.0, entropy_weight=1.0), "above 0 and at most 1"),
    (dict(entropy_floor=1.1, entropy_weight=1.0), "at most 1"),
    (dict(entropy_floor="x", entropy_weight=1.0), "entropy_floor"),
    (dict(entropy_floor=True, entropy_weight=1.0), "entropy_floor"),
    (dict(router_grad="none", entropy_weight=0.3), "learns nothing"),
    (dict(router_weight=0.1), "only with 'aux'"),
    (dict(router=STATIC, entropy_weight=0.3, entropy_floor=0.5), "StaticRouter learns nothing"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=str)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
