"""Routers: the target against AHPA's eq. 3 and 4 written out with loops, the contract, mistakes."""

import dataclasses

import pytest
import torch
from support.registered import shipped
from torch import nn

from ahpa.registry import ROUTERS, ConfigError, build
from ahpa.registry.contracts import LevelSpec
from ahpa.routers.base import LearnedRouter
from ahpa.routers.static import HandOver, StaticRouter
from ahpa.testing.common import toy_geometry
from ahpa.testing.routers import check_router

SPEC = {
    "a": LevelSpec(5, 2),
    "b": LevelSpec(6, 2),
    "c": LevelSpec(6, 4),
    "d": LevelSpec(6, 8),
    "e": LevelSpec(6, 8),
    "cls": LevelSpec(12, 0),
}
GRID, WIDTH, BATCH = (4, 4), 7, 3
SIDES = {0: None, 2: 16, 4: 8, 8: 4}
T = torch.tensor([0.0, 0.37, 1.0])
LEARNED = ("MLPRouter", "LUTRouter", "AttentionRouter", "ContentRouter")
HALVES = (torch.bfloat16, torch.float16)


def geometry(grid=GRID):
    return dataclasses.replace(toy_geometry(width=WIDTH), grid=grid)


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make(name, *, groups="2/2", grid=GRID, **options):
    cfg = dict(type=name, groups=groups, **options)
    return build(ROUTERS, cfg, levels=SPEC, geometry=geometry(grid))


def random_features(seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    sizes = {
        name: (BATCH, c, SIDES[s], SIDES[s])[: 4 if s else 2] for name, (c, s, _) in SPEC.items()
    }
    return {name: torch.randn(size, generator=draw).to(dtype) for name, size in sizes.items()}


def random_content(seed=1):
    return torch.randn(
        BATCH, GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(seed)
    )


def sample_bilinear(x, grid, b, c, i, j):
    """Value of x [B, C, H, W] at pixel (i, j) of a grid over the same area, with pixel centres at
    half (align_corners off)."""
    height, width = x.shape[-2:]
    y = min(max((i + 0.5) * height / grid[0] - 0.5, 0), height - 1)
    z = min(max((j + 0.5) * width / grid[1] - 0.5, 0), width - 1)
    y0, z0 = int(y), int(z)
    y1, z1 = min(y0 + 1, height - 1), min(z0 + 1, width - 1)
    top = x[b, c, y0, z0] * (1 - (z - z0)) + x[b, c, y0, z1] * (z - z0)
    low = x[b, c, y1, z0] * (1 - (z - z0)) + x[b, c, y1, z1] * (z - z0)
    return top * (1 - (y - y0)) + low * (y - y0)


def sample_mean(x, grid, b, c, i, j):
    """Mean of the block of x [B, C, H, W] under pixel (i, j) of a grid that divides it."""
    rows, columns = x.shape[-2] // grid[0], x.shape[-1] // grid[1]
    return x[b, c, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean()


def slow_target(router, features, intra, inter, sample):
    """AHPA eq. 3 and 4, one number at a time."""
    target = torch.zeros(BATCH, router.grid[0] * router.grid[1], router.out_dim)
    for b in range(BATCH):
        first = 0
        for column, (group, names) in enumerate(router.groups.items()):
            for c in range(router.channels[group]):
                for n in range(target.shape[1]):
                    i, j = divmod(n, router.grid[1])
                    mixed = 0.0  # eq. 3
                    for level, name in enumerate(names):
                        mixed += intra[group][b, level] * sample(
                            features[name], router.grid, b, c, i, j
                        )
                    target[b, n, first + c] = inter[b, column] * mixed  # eq. 4
            first += router.channels[group]
    return target


@pytest.mark.parametrize(
    ("resize", "sample"), [("bilinear", sample_bilinear), ("adaptive", sample_mean)]
)
@pytest.mark.parametrize(
    "groups", ["2/2", {"low": ["a"], "high": ["b", 3, "e"]}, {"one": ["c", "d"]}]
)
@torch.no_grad()
def test_target_is_eq_3_and_4(resize, sample, groups):
    router = make("MLPRouter", groups=groups, resize=resize)
    features = random_features()
    expected = slow_target(router, features, *router.weights(T), sample)
    torch.testing.assert_close(router(features, T), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(2, 4), (8, 8)])
@torch.no_grad()
def test_target_on_an_oblong_and_on_a_finer_grid(grid):
    router = make("MLPRouter", grid=grid)
    features = random_features()
    expected = slow_target(router, features, *router.weights(T), sample_bilinear)
    torch.testing.assert_close(router(features, T), expected, atol=1e-5, rtol=1e-5)


def test_one_group_of_one_level_passes_it_on():
    features = random_features()
    router = make("StaticRouter", groups="1")
    assert torch.equal(router(features, T), features["e"].flatten(2).transpose(1, 2))
    assert router.used_levels == ("e",)


def test_prefix_tokens_come_first_and_unweighted():
    features = random_features()
    router = make("StaticRouter", prefix=("cls",))
    target = router(features, T)
    assert target.shape == (BATCH, 1 + 16, 12)
    assert torch.equal(target[:, 0], features["cls"])
    assert torch.equal(target[:, 1:], make("StaticRouter")(features, T))
    assert router.used_levels == ("b", "c", "d", "e", "cls")
    assert make("StaticRouter", prefix="cls").prefix == ("cls",)


def test_attributes():
    router = make("MLPRouter", groups={"high": ["e", "b"], "low": [0]})
    assert router.groups == {"high": ("e", "b"), "low": ("a",)}
    assert router.channels == {"high": 6, "low": 5}
    assert router.out_dim == 11
    assert router.used_levels == ("a", "b", "e")
    assert "high=[e, b]" in repr(router)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_features_are_weighed_in_float32(dtype):
    """Against the same features in float32, already of the grid's size: nothing is rounded again,
    with autocast and without it."""
    features = {
        name: x[..., :4, :4] if x.ndim == 4 else x
        for name, x in random_features(dtype=dtype).items()
    }
    router = make("MLPRouter")
    expected = router({name: x.float() for name, x in features.items()}, T)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(router(features, T), expected, atol=1e-6, rtol=1e-6)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(router(features, T), expected, atol=1e-6, rtol=1e-6)


# --- the contract, over every registered router ---


@pytest.mark.parametrize("name", shipped(ROUTERS))
def test_contract(name):
    check_router(dict(type=name))


@pytest.mark.parametrize("name", shipped(ROUTERS))
@pytest.mark.parametrize("dtype", [None, *HALVES])
def test_finite_values_and_gradients(name, dtype):
    router = make(name)
    content = random_content().mul(1e3).to(dtype or torch.float32).requires_grad_()
    features = random_features(dtype=dtype or torch.float32)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        intra, inter = router.weights(T, content)
        target = router(features, T, content)
    for alpha in intra.values():
        assert alpha.dtype == torch.float32
        torch.testing.assert_close(alpha.sum(-1), torch.ones(BATCH))
    assert inter.dtype == target.dtype == torch.float32
    torch.testing.assert_close(inter.sum(-1), torch.ones(BATCH))
    assert target.isfinite().all()
    if parameters := list(router.parameters()):
        target.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", LEARNED)
def test_gradient_reaches_every_parameter(name):
    router = make(name, **({"bins": 3} if name == "LUTRouter" else {}))
    (router(random_features(), T, random_content()) * torch.randn(BATCH, 16, 12)).sum().backward()
    for parameter, value in router.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", shipped(ROUTERS))
def test_state_dict_round_trip(name):
    router, other = make(name), make(name)
    for value in router.parameters():
        nn.init.normal_(value)
    other.load_state_dict(router.state_dict())
    features, content = random_features(), random_content()
    assert torch.equal(router(features, T, content), other(features, T, content))


@pytest.mark.parametrize("name", shipped(ROUTERS))
def test_meta_construction(name):
    with torch.device("meta"):
        router = make(name)
    real = make(name)
    assert all(value.is_meta for value in router.state_dict().values())
    shapes = {key: value.shape for key, value in real.state_dict().items()}
    assert {key: value.shape for key, value in router.state_dict().items()} == shapes
    assert router.out_dim == real.out_dim


class NegativeBetas(StaticRouter):
    """Broken: betas below zero."""

    def inter(self, t):
        return super().inter(t) - 1


class Unnormalised(StaticRouter):
    """Broken: alphas that do not sum to 1."""

    def weights(self, t, content=None):
        intra, inter = super().weights(t)
        return {group: 2 * alpha for group, alpha in intra.items()}, inter


class BatchDependent(StaticRouter):
    """Broken: a sample's weights depend on the others."""

    def weights(self, t, content=None):
        intra, inter = super().weights(t)
        lead = torch.arange(4) * float(len(t))
        return {group: (alpha + lead).softmax(-1) for group, alpha in intra.items()}, inter


class NoGradient(LearnedRouter):
    """Broken: the parameters get no gradient."""

    def __init__(self, **options):
        super().__init__(**options)
        self.row = nn.Parameter(torch.zeros(self.outputs))

    def logits(self, t, content):
        return self.row.detach().expand(len(t), -1)


class HiddenState(StaticRouter):
    """Broken: what it learned is not in its state dict."""

    def __init__(self, **options):
        super().__init__(**options)
        self.row = nn.Parameter(torch.ones(2))

    def state_dict(self, *args, **options):
        return {}

    def load_state_dict(self, state, strict=True):
        pass

    def inter(self, t):
        return self.row.softmax(-1).cumsum(-1).expand(len(t), -1) * self.row


class HalfTarget(StaticRouter):
    """Broken: the target is not float32."""

    def mix(self, features, intra, inter):
        return super().mix(features, intra, inter).half()


class GreedyRouter(StaticRouter):
    """Broken: it reads a level that it does not list."""

    def mix(self, features, intra, inter):
        return super().mix(features, intra, inter) + features["level0"].mean()


class SecondMixing(StaticRouter):
    """Broken: calling it is something else than mixing by its weights."""

    def forward(self, features, t, content=None):
        return 2 * super().forward(features, t, content)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NegativeBetas, "betas must not be negative"),
        (Unnormalised, "do not sum to 1"),
        (BatchDependent, "change with the other samples"),
        (NoGradient, "no gradient reaches .*'row'"),
        (HiddenState, "does not restore the router"),
        (HalfTarget, "expected float32"),
        (SecondMixing, "forward is not mix"),
    ],
)
def test_the_check_finds_a_broken_router(broken, message):
    levels = {f"level{index}": LevelSpec(8, 8) for index in range(15)}
    router = broken(levels=levels, geometry=toy_geometry(width=6))
    with pytest.raises(AssertionError, match=message):
        check_router(router)


def test_the_check_finds_a_router_that_reads_more_than_it_says():
    levels = {f"level{index}": LevelSpec(8, 8) for index in range(15)}
    with pytest.raises(KeyError, match="level0"):
        check_router(GreedyRouter(levels=levels, geometry=toy_geometry(width=6)))


@pytest.mark.parametrize("base", [LearnedRouter, HandOver])
def test_the_bases_are_abstract(base):
    with pytest.raises(TypeError, match="abstract"):
        base(levels=SPEC, geometry=geometry(), groups="2/2")


# --- mistakes ---


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(type="MLPRuoter"), "did you mean 'MLPRouter'"),
        (
            dict(type="MLPRouter", hiden_dim=3),
            "MLPRouter has no option 'hiden_dim'; did you mean 'hidden_dim'",
        ),
        (dict(type="StaticRouter", beta="softmax"), "StaticRouter has no option 'beta'"),
        (dict(type="MLPRouter", geometry=(2, 2)), "'geometry' follows from the other parts"),
        (dict(type="MLPRouter", groups="9/9"), "needs 18 levels, but the prior has 5"),
        (
            dict(type="MLPRouter", groups="2/2", resize="bilinaer"),
            "resize: 'bilinaer'.*did you mean 'bilinear'",
        ),
        (
            dict(type="MLPRouter", groups="2/2", beta="tanh"),
            "beta: 'tanh' is unknown.*sigmoid, softmax",
        ),
        (dict(type="MLPRouter", groups="2/2", depth=0), "depth: must be a positive integer, got 0"),
        (
            dict(type="MLPRouter", groups="2/2", hidden_dim=2.5),
            "hidden_dim: must be a positive integer, got 2.5",
        ),
        (dict(type="LUTRouter", groups="2/2", bins=0), "bins: must be"),
        (dict(type="AttentionRouter", groups="2/2", prototypes=0), "prototypes: must be"),
        (dict(type="AttentionRouter", groups="2/2", key_dim=-1), "key_dim: must be"),
        (dict(type="ContentRouter", groups="2/2", combine="cat"), "combine: 'cat'.*concat"),
        (dict(type="LinearRouter", groups="1/1/1"), "exactly these two.*got g1, g2, g3"),
        (dict(type="SigmoidRouter", groups="4"), "exactly these two.*got g1"),
        (
            dict(type="MLPRouter", groups="2/2", prefix=["clss"]),
            "no level 'clss'; did you mean 'cls'",
        ),
        (dict(type="MLPRouter", groups="2/2", prefix=["a"]), "'a' is not a vector"),
        (
            dict(type="MLPRouter", groups="2", prefix=["cls"]),
            "'cls' has 12 channels, but the groups' target has 6",
        ),
        (
            dict(type="MLPRouter", groups="2/2", encoding=dict(type="Linear")),
            "encoding.type: no time encoding",
        ),
        (
            dict(type="MLPRouter", groups="2/2", encoding=dict(type="FourierEncoding", dim=5)),
            "dim: must be even",
        ),
        (
            dict(type="MLPRouter", groups="2/2", encoding=dict(type="FourierEncoding", sigma=0)),
            "sigma: must be a finite number above 0",
        ),
        (
            dict(
                type="MLPRouter", groups="2/2", encoding=dict(type="SinusoidalEncoding", scale=-1)
            ),
            "scale: must be",
        ),
        (
            dict(type="MLPRouter", groups="2/2", encoding=dict(type="LinearEncoding", dim=0)),
            "dim: must be",
        ),
    ],
)
def test_mistakes_in_a_config(cfg, message):
    with pytest.raises(ConfigError, match=f"model.router.*{message}"):
        build(ROUTERS, cfg, where="model.router", levels=SPEC, geometry=geometry())


def test_mistakes_in_a_call():
    features = random_features()
    del features["c"]
    with pytest.raises(ValueError, match="the prior gave no level 'c'"):
        make("StaticRouter")(features, T)
    with pytest.raises(ValueError, match=r"content must be \[B, N, 7\], got \[3, 16, 8\]"):
        make("ContentRouter").weights(T, torch.zeros(3, 16, 8))
