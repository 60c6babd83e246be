"""Learned groups: the weights written out, fixed groups as a special case, and levels of different
channels."""

import math

import pytest
import torch
import torch.nn.functional as F

from ahpa.registry import ROUTERS, ConfigError, build
from ahpa.registry.contracts import LevelSpec
from ahpa.routers.mixing import weighted_sum
from ahpa.testing.common import toy_geometry

SIZES = [(128, 1)] * 3 + [(128, 2)] + [(256, 2)] * 2 + [(256, 4)] + [(512, 4)] * 2 + [(512, 8)] * 6
SD = {f"l{index}": LevelSpec(*size) for index, size in enumerate(SIZES)}
SPEC = {"a": LevelSpec(3, 2), "b": LevelSpec(6, 4), "c": LevelSpec(6, 8), "d": LevelSpec(6, 8)}
T = torch.tensor([0.0, 0.37, 1.0])
HARD = 1e4  # a lead in the logits that leaves shares of exactly 0 and 1


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(levels=SPEC, name="PartitionRouter", **options):
    cfg = dict(type=name, **options)
    return build(ROUTERS, cfg, where="router", levels=levels, geometry=toy_geometry(width=7))


def features(spec=SPEC, batch=3):
    draw = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(batch, c, 32 // s, 32 // s, generator=draw) for n, (c, s, _) in spec.items()
    }


def by_hand(router, t):
    """M_lg exp(s_l) over its sum, and softmax of the betas, one number at a time."""
    m, (levels, groups) = (
        router.membership_logits / router.temperature,
        router.membership_logits.shape,
    )
    alpha, beta = torch.zeros(len(t), groups, levels), torch.zeros(len(t), groups)
    for b, row in enumerate(router.mlp(router.encoding(t))):
        for g in range(groups):
            parts = [m[i, g].exp() / m[i].exp().sum() * row[i].exp() for i in range(levels)]
            for i in range(levels):
                alpha[b, g, i] = parts[i] / sum(parts)
            beta[b, g] = row[levels + g].exp() / row[levels:].exp().sum()
    return alpha, beta


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(temperature=0.5),
        dict(start=0.0),
        dict(groups={"x": ["a", "b"], "y": ["b"], "z": [3]}),
    ],
)
def test_weights_are_the_formula(options):
    router = make(**{"groups": "1/1/2", **options})
    router.membership_logits.add_(torch.randn(router.membership_logits.shape))
    intra, inter = router.weights(T)
    alpha, beta = by_hand(router, T)
    torch.testing.assert_close(torch.stack(list(intra.values()), dim=1), alpha)
    torch.testing.assert_close(inter, beta)
    shares = torch.stack(list(router.membership().values()))
    torch.testing.assert_close(shares.sum(0), torch.ones(len(router.used_levels)))
    assert all(names == router.used_levels for names in router.groups.values())


@torch.no_grad()
def test_of_the_sd_encoder_all_15_levels_take_part():
    router = make(SD)
    assert router.used_levels == tuple(SD) and list(router.groups) == ["g1", "g2", "mid", "deep"]
    assert router.out_dim == 4 * 512 and router.mlp[-1].out_features == 15 + 4
    shares = torch.stack(list(router.membership().values()), dim=-1)
    own = math.exp(2) / (math.exp(2) + 3)
    assert shares[7].tolist() == pytest.approx([(1 - own) / 3] * 2 + [own, (1 - own) / 3])
    assert make(SD, groups="5/5/5").out_dim == 3 * 512
    assert make(SD, groups="3/3/3/3/3").out_dim == 5 * 512


@torch.no_grad()
@pytest.mark.parametrize("groups", ["4/4", "2/6", "G3+G4", "3/3/2"])
def test_with_hard_membership_it_is_the_mlp_router(groups):
    """The same layers: weights, zeros elsewhere, and target."""
    fixed, learned = make(SD, "MLPRouter", groups=groups), make(SD, groups=groups, start=HARD)
    learned.encoding.load_state_dict(fixed.encoding.state_dict())
    learned.mlp.load_state_dict(fixed.mlp.state_dict())
    (want, beta), (found, same) = fixed.weights(T), learned.weights(T)
    assert torch.equal(beta, same)
    for group, names in fixed.groups.items():
        inside = torch.tensor([name in names for name in learned.used_levels])
        torch.testing.assert_close(found[group][:, inside], want[group], rtol=0, atol=1e-7)
        assert (found[group][:, ~inside] == 0).all()
    x = features(SD, batch=3)
    torch.testing.assert_close(learned(x, T), fixed(x, T), rtol=0, atol=1e-6)


def test_one_group_weighs_every_level_and_ignores_membership():
    router = make(groups="4")
    alpha, beta = by_hand(router, T)
    intra, inter = router.weights(T)
    torch.testing.assert_close(intra["g1"], alpha[:, 0])
    torch.testing.assert_close(intra["g1"], router.mlp(router.encoding(T))[:, :4].softmax(-1))
    assert (inter == 1).all() and (router.membership()["g1"] == 1).all()


def test_gradient_reaches_the_membership_and_it_finds_the_level_of_each_group():
    """The target's first half is level a, its second half b: each group learns its own level."""
    spec = {name: LevelSpec(6, 8) for name in "ab"}
    router, x = (
        make(spec, groups={"x": [0, 1], "y": [0, 1]}, start=0.0, zero_init=True),
        features(spec),
    )
    goal = 0.5 * torch.cat([x["a"], x["b"]], 1).flatten(2).mT
    optimizer = torch.optim.Adam([router.membership_logits], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (router(x, T) - goal).square().mean().backward()
        optimizer.step()
    shares = router.membership()
    assert shares["x"][0] > 0.9 and shares["y"][1] > 0.9


def test_shares_of_zero_have_finite_gradients():
    router = make(groups="2/2", start=HARD)
    router(features(), T).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in router.parameters())


def test_levels_of_different_channels_are_widened_with_zeros():
    """A level's root mean square over the group's width is its own; a level of that width is
    unchanged."""
    x = torch.randn(2, 3, 4, 4)
    wide = weighted_sum([x], torch.ones(2, 1), 6)
    assert wide.shape == (2, 6, 4, 4) and (wide[:, 3:] == 0).all()
    torch.testing.assert_close(wide[:, :3], x * 2**0.5)
    torch.testing.assert_close(wide.square().mean(), x.square().mean())
    router, given = make(name="MLPRouter", groups={"all": ["a", "b", "c"]}, pad=True), features()
    alpha = router.weights(T)[0]["all"]
    want = torch.zeros(3, 6, 4, 4)
    for i, name in enumerate("abc"):
        small = F.interpolate(given[name], size=(4, 4), mode="bilinear", align_corners=False)
        want[:, : small.shape[1]] += (
            alpha[:, i, None, None, None] * small * (2**0.5 if name == "a" else 1)
        )
    torch.testing.assert_close(router(given, T), want.flatten(2).mT)
    assert router.channels == {"all": 6}


def test_a_level_of_several_groups_is_resized_once(monkeypatch):
    calls, resize = [], F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda x, **options: calls.append(1) or resize(x, **options)
    )
    make(groups="1/1/2")(features(), T)
    assert len(calls) == 2, "of four levels, two are finer than the grid"


FORMS = [("2/3/3", 3), ({f"n{i}": [7 + i] for i in range(5)}, 5), ("1/1/1/1/1/1/1/1", 8)]


@pytest.mark.parametrize("name", ["MLPRouter", "LUTRouter", "StaticRouter", "AttentionRouter"])
@pytest.mark.parametrize(("groups", "count"), FORMS)
def test_any_number_of_groups(name, groups, count):
    router = make(SD, name, groups=groups)
    intra, inter = router.weights(T)
    assert len(intra) == count and inter.shape == (3, count)
    x = {level: torch.randn(3, SD[level].channels, 4, 4) for level in router.used_levels}
    assert router(x, T).shape == (3, 16, 512 * count)


@pytest.mark.parametrize("name", ["MLPRouter", "LUTRouter", "StaticRouter", "AttentionRouter"])
def test_a_padded_group_is_as_wide_as_its_widest_level(name):
    router = make(SD, name, groups="3/3/3", pad=True)
    assert SD["l6"].channels == 256 and "l6" in router.groups["g1"]
    assert router.out_dim == 3 * 512


MISTAKES = [
    (dict(start=-1), "start: must be a finite number of at least 0"),
    (dict(start="2"), "start"),
    (dict(start=math.inf), "start"),
    (dict(temperature=0), "temperature: must be a finite number above 0"),
    (dict(temperature=None), "temperature"),
    (dict(groups="1/3", pad=False), r"a \(3\), b \(6\).*pad=True"),
    (dict(groups="G1"), "defined for 15 levels, but the prior has 4"),
    (dict(groups="3/3"), "needs 6 levels"),
    (dict(groups="2/2", depth=0), "depth"),
]


@pytest.mark.parametrize(("cfg", "message"), MISTAKES, ids=str)
def test_mistakes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        make(**({"groups": "2/2"} | cfg))
