"""Each router's weights, the time encodings and the entropies against formulas written out."""

import math
from itertools import pairwise

import pytest
import torch
from support.registered import shipped
from torch import nn

from ahpa.registry import ROUTERS, TIME_ENCODINGS, build
from ahpa.registry.contracts import LevelSpec, TimeEncoding
from ahpa.routers import entropies
from ahpa.testing.common import toy_geometry
from ahpa.testing.routers import check_router, check_time_encoding

SPEC = {name: LevelSpec(6, stride) for name, stride in (("b", 2), ("c", 4), ("d", 8), ("e", 8))}
GRID, WIDTH, BATCH = (4, 4), 7, 3
T = torch.tensor([0.0, 0.37, 1.0])
LEARNED = ("MLPRouter", "LUTRouter", "AttentionRouter", "ContentRouter")
UNEVEN = {"x": ["b", "c", "d"], "y": ["e"]}


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make(name, *, groups="2/2", **options):
    cfg = dict(type=name, groups=groups, **options)
    return build(ROUTERS, cfg, levels=SPEC, geometry=toy_geometry(width=WIDTH))


def random_features():
    sides = {2: 16, 4: 8, 8: 4}
    return {
        name: torch.randn(BATCH, channels, sides[s], sides[s])
        for name, (channels, s, _) in SPEC.items()
    }


def random_content(seed=1):
    return torch.randn(
        BATCH, GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(seed)
    )


def by_hand(logits, sizes, groups):
    """Softmax over each stretch of the logits [B, outputs] -> ({group: alpha}, beta), with exp and
    sum only."""
    parts, first = [], 0
    for size in sizes:
        part = logits[:, first : first + size].exp()
        parts.append(part / part.sum(1, keepdim=True))
        first += size
    return dict(zip(groups, parts[:-1], strict=True)), parts[-1]


def assert_weights(router, t, logits, content=None):
    intra, inter = router.weights(t, content)
    expected, beta = by_hand(logits, [3, 1, 2], ["x", "y"])
    for group, alpha in expected.items():
        torch.testing.assert_close(intra[group], alpha)
    torch.testing.assert_close(inter, beta)


@torch.no_grad()
def run_layers(x, weights, biases):
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        if index < len(weights) - 1:
            x = x * torch.sigmoid(x)  # SiLU
    return x


def layers(mlp):
    state = mlp.state_dict()
    return [v for k, v in state.items() if k.endswith("weight")], [
        v for k, v in state.items() if k.endswith("bias")
    ]


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_mlp_router(depth):
    router = make(
        "MLPRouter",
        groups=UNEVEN,
        depth=depth,
        hidden_dim=9,
        encoding=dict(type="LinearEncoding", dim=4),
    )
    weights, biases = layers(router.mlp)
    assert len(weights) == depth
    e = torch.stack(
        [t * router.encoding.linear.weight[:, 0] + router.encoding.linear.bias for t in T]
    )
    assert_weights(router, T, run_layers(e.detach(), weights, biases))


@pytest.mark.parametrize(
    ("depth", "expected"), [(3, 101_642), (4, 167_434), (5, 233_226), (8, 430_602)]
)
def test_mlp_router_has_the_papers_number_of_parameters(depth, expected):
    """METHODS section 12: .102, .167, .233, .431 M for 15 levels in 4/4, the embedding W t + b
    included."""
    spec = {f"l{index}": LevelSpec(8, 8) for index in range(15)}
    cfg = dict(type="MLPRouter", depth=depth)
    router = build(ROUTERS, cfg, levels=spec, geometry=toy_geometry(width=WIDTH))
    widths = [128] + [256] * (depth - 1) + [10]
    assert 2 * 128 + sum(a * b + b for a, b in pairwise(widths)) == expected
    assert sum(p.numel() for p in router.parameters()) == expected


def test_lut_router_reads_the_row_of_t():
    router = make("LUTRouter", groups=UNEVEN)
    intra, inter = router.weights(T)
    assert torch.equal(intra["x"], torch.full((BATCH, 3), 1 / 3)) and torch.equal(
        inter, torch.full((BATCH, 2), 0.5)
    )
    nn.init.normal_(router.alpha_table)
    nn.init.normal_(router.beta_table)
    times = [0.0, 0.0999, 0.1001, 0.5, 0.899, 0.901, 0.9999, 1.0]
    rows = [0, 0, 1, 5, 8, 9, 9, 9]  # AHPA's example: 0.899 -> 0.901 changes the bin
    logits = torch.stack(
        [torch.cat([router.alpha_table[row], router.beta_table[row]]) for row in rows]
    ).detach()
    assert_weights(router, torch.tensor(times), logits)


def test_lut_router_stays_in_the_table_beyond_0_and_1():
    router = make("LUTRouter", bins=4)
    nn.init.normal_(router.beta_table)
    beta = router.weights(torch.tensor([-0.1, 0.0, 1.0, 1.1]))[1]
    assert (
        torch.equal(beta[0], beta[1])
        and torch.equal(beta[2], beta[3])
        and not torch.equal(beta[1], beta[2])
    )


def test_attention_router():
    router = make("AttentionRouter", groups=UNEVEN, prototypes=3, key_dim=5)
    e = router.encoding(T)
    logits = torch.zeros(BATCH, 6)
    for b in range(BATCH):
        query = router.query.weight @ e[b]
        scores = torch.stack(
            [math.exp((query @ key).item() / math.sqrt(5)) * torch.ones(()) for key in router.keys]
        )
        for share, value in zip(scores / scores.sum(), router.values, strict=True):
            logits[b] += share * value.detach()
    assert_weights(router, T, logits)


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_content_router(combine):
    router = make(
        "ContentRouter", groups=UNEVEN, combine=combine, encoding=dict(type="LinearEncoding", dim=4)
    ).eval()
    content = random_content()
    e = router.encoding(T).detach()
    seen = torch.stack(
        [router.embed.weight @ tokens.mean(0) + router.embed.bias for tokens in content]
    ).detach()
    weights, biases = layers(router.mlp)
    assert weights[0].shape[1] == (8 if combine == "concat" else 4)
    x = torch.cat([e, seen], 1) if combine == "concat" else e + seen
    assert_weights(router, T, run_layers(x, weights, biases), content)


def test_content_router_gradient_to_the_content_can_be_cut():
    for detach in (False, True):
        router = make("ContentRouter", detach_content=detach)
        content = random_content().requires_grad_()
        router(random_features(), T, content).square().sum().backward()
        assert (content.grad is None) == detach


def test_content_router_follows_the_mean_content():
    router = make("ContentRouter")
    batches = [random_content(seed).detach() for seed in (1, 2, 3)]
    means = [batch.mean((0, 1)) for batch in batches]
    router.weights(T, batches[0])
    torch.testing.assert_close(router.mean_content, means[0])
    router.weights(
        T, torch.full_like(batches[0], float("nan"))
    )  # left out: a bad batch must not stay in the state
    router.weights(T, batches[1])
    router.weights(T, None)
    expected = 0.99 * means[0] + 0.01 * means[1]
    torch.testing.assert_close(router.mean_content, expected)
    assert router.batches_seen.item() == 2
    router.eval()
    router.weights(T, batches[2])
    torch.testing.assert_close(router.mean_content, expected)
    same = expected.expand(BATCH, 16, WIDTH)
    for with_mean, with_tokens in zip(
        router.weights(T)[0].values(), router.weights(T, same)[0].values(), strict=True
    ):
        torch.testing.assert_close(with_mean, with_tokens)


def test_static_router():
    intra, inter = make("StaticRouter", groups=UNEVEN).weights(T)
    assert torch.equal(intra["x"], torch.full((BATCH, 3), 1 / 3)) and torch.equal(
        intra["y"], torch.ones(BATCH, 1)
    )
    assert torch.equal(inter, torch.full((BATCH, 2), 0.5))


def test_linear_router():
    intra, inter = make("LinearRouter").weights(T)
    torch.testing.assert_close(
        inter, torch.tensor([[1.0, 0.0], [0.63, 0.37], [0.0, 1.0]])
    )  # mid, deep
    assert torch.equal(intra["mid"], torch.full((BATCH, 2), 0.5))
    swapped = make("LinearRouter", groups={"deep": ["d"], "mid": ["b"]})
    torch.testing.assert_close(swapped.weights(T)[1], inter.flip(1))


def test_sigmoid_router():
    inter = make("SigmoidRouter", midpoint=0.4, slope=5.0).weights(T)[1]
    for row, t in zip(inter, (0.0, 0.37, 1.0), strict=True):
        deep = 1 / (1 + math.exp(-5.0 * (t - 0.4)))
        torch.testing.assert_close(row, torch.tensor([1 - deep, deep]))


@pytest.mark.parametrize("name", LEARNED)
def test_sigmoid_betas_are_independent(name):
    router = make(name, beta="sigmoid", groups=UNEVEN)
    for value in router.parameters():
        nn.init.normal_(value)
    content = random_content()
    inter = router.eval().weights(T, content)[1]
    logits = router.logits(T, content)[:, -2:]
    torch.testing.assert_close(inter, 1 / (1 + torch.exp(-logits)))


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "LUTRouter"])
def test_zero_init_starts_uniform(name):
    intra, inter = make(name, zero_init=True, groups=UNEVEN).weights(T, random_content())
    assert torch.equal(intra["x"], torch.full((BATCH, 3), 1 / 3)) and torch.equal(
        inter, torch.full((BATCH, 2), 0.5)
    )
    assert make(name, groups=UNEVEN).weights(T, random_content())[1].std() > 0


def test_the_router_learns_which_level_is_asked_for():
    """Gradient steps on a squared error find the level that made the target, and another one at
    another t."""
    router = make("MLPRouter", groups={"one": ["d", "e"]}, hidden_dim=16)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    features = random_features()
    t = torch.tensor([0.0, 0.0, 1.0])
    goal = torch.cat([features["d"][:2], features["e"][2:]]).flatten(2).transpose(1, 2)
    for _ in range(100):
        optimizer.zero_grad()
        (router(features, t) - goal).square().mean().backward()
        optimizer.step()
    assert router.weights(t)[0]["one"][[0, 2], [0, 1]].min() > 0.9


# --- encodings ---


def test_linear_encoding():
    encoding = build(TIME_ENCODINGS, dict(type="LinearEncoding"))
    assert encoding.linear.weight.shape == (128, 1) and encoding.dim == 128
    row = 0.37 * encoding.linear.weight[:, 0] + encoding.linear.bias
    torch.testing.assert_close(encoding(T)[1], row)


def test_sinusoidal_encoding():
    encoding = build(TIME_ENCODINGS, dict(type="SinusoidalEncoding", dim=8))
    for row, t in zip(encoding(T), (0.0, 0.37, 1.0), strict=True):
        angles = [1000 * t / 10_000 ** (i / 3) for i in range(4)]
        expected = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    assert build(TIME_ENCODINGS, dict(type="SinusoidalEncoding", dim=2))(T).isfinite().all()


def test_fourier_encoding():
    encoding = build(TIME_ENCODINGS, dict(type="FourierEncoding", dim=6, sigma=2.0))
    for row, t in zip(encoding(T), (0.0, 0.37, 1.0), strict=True):
        angles = [2 * math.pi * f * t for f in encoding.frequencies.tolist()]
        expected = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


def test_fourier_frequencies_have_their_own_seed():
    def draw(**options):
        return build(TIME_ENCODINGS, dict(type="FourierEncoding", dim=4096, **options)).frequencies

    state = torch.get_rng_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and not torch.equal(draw(seed=1), first)
    torch.testing.assert_close(draw(sigma=3.0), 3 * first)
    assert abs(first.std() - 1) < 0.05 and abs(first.mean()) < 0.06


@pytest.mark.parametrize("name", shipped(TIME_ENCODINGS))
def test_contract_of_the_encodings(name):
    check_time_encoding(dict(type=name))


class Constant(TimeEncoding):
    """Broken: all times are encoded alike."""

    dim = 4

    def forward(self, t):
        return torch.zeros(len(t), 4)


class WrongWidth(TimeEncoding):
    """Broken: wider than it says."""

    dim = 4

    def forward(self, t):
        return t[:, None].expand(-1, 5)


class Relative(TimeEncoding):
    """Broken: a time is encoded relative to the others of the batch."""

    dim = 1

    def forward(self, t):
        return (t - t.mean())[:, None]


class Half(TimeEncoding):
    """Broken: not float32."""

    dim = 1

    def forward(self, t):
        return t[:, None].half()


@pytest.mark.parametrize(
    ("broken", "message"),
    [(Constant, "alike"), (WrongWidth, "dim"), (Relative, "with others"), (Half, "float32")],
)
def test_the_check_finds_a_broken_encoding(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_time_encoding(broken())


@pytest.mark.parametrize("name", shipped(TIME_ENCODINGS))
def test_every_encoding_serves_every_router_that_takes_one(name):
    encoding = dict(type=name, dim=6)
    for router in ("MLPRouter", "AttentionRouter", "ContentRouter"):
        check_router(dict(type=router, encoding=encoding))
    assert build(TIME_ENCODINGS, encoding)(T).shape == (BATCH, 6)
    with torch.device("meta"):
        assert all(value.is_meta for value in build(TIME_ENCODINGS, encoding).state_dict().values())


# --- entropies ---


def test_entropies_by_hand_and_their_gradient():
    alpha = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    beta = torch.tensor(
        [[0.2, 0.2], [0.9, 0.3]]
    )  # sigmoid betas: normalised to (.5, .5), (.75, .25)
    found = entropies({"mid": alpha, "deep": torch.full((2, 4), 0.25)}, beta)
    assert list(found) == ["inter", "intra_mid", "intra_deep"]
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["intra_mid"].item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert found["intra_deep"].item() == pytest.approx(math.log(4), abs=1e-6)
    assert found["inter"].item() == pytest.approx((math.log(2) + quarter) / 2, abs=1e-6)
    found["intra_mid"].backward()
    assert alpha.grad.isfinite().all() and alpha.grad.abs().sum() > 0


def test_raising_the_entropy_undoes_a_collapse():
    router = make("LUTRouter", bins=1)
    with torch.no_grad():
        router.alpha_table[:, 0] = 4.0
    optimizer = torch.optim.SGD(router.parameters(), lr=2.0)
    before = entropies(*router.weights(T))["intra_mid"].item()
    for _ in range(200):
        optimizer.zero_grad()
        (-entropies(*router.weights(T))["intra_mid"]).backward()
        optimizer.step()
    assert before < 0.15 and entropies(*router.weights(T))["intra_mid"].item() > 0.69
