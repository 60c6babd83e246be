"""SiT against a slow reference written out with plain operations, the papers' parameter counts, and
the keys of the published layout."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.backbones import moved, norm

from ahpa.analysis.cost import forward_macs
from ahpa.backbones.layers import sincos_2d
from ahpa.registry import BACKBONES, ConfigError, build
from ahpa.registry.contracts import Tap
from ahpa.testing.backbones import check_backbone

TINY = dict(type="SiT", depth=3, hidden_size=48, num_heads=4, num_classes=10)
SIZES = dict(input_size=8, in_channels=4)


def tiny(**changes):
    return moved(TINY, **changes)


def inputs():
    values = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 8, 8, generator=values)
    return {"image": x}, torch.tensor([0.0, 0.37, 1.0]), torch.tensor([0, 9, 10])


def positions(dim, grid):
    """MAE's table, number by number: the column fills the first half of the channels, the row the
    second."""
    table = torch.zeros(grid * grid, dim)
    quarter = dim // 4
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                rate = 1 / 10000 ** (i / quarter)
                values = [
                    wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos)
                ]
                for part, value in enumerate(values):
                    table[row * grid + column, part * quarter + i] = value
    return table


def attention(w, prefix, x, heads):
    dim = x.shape[-1]
    q, k, v = (x @ w[f"{prefix}.qkv.weight"].T + w[f"{prefix}.qkv.bias"]).split(dim, -1)
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        own_q, own_k = q[..., part], k[..., part]
        if (
            f"{prefix}.q_norm.weight" in w
        ):  # over one head's channels; eps 1e-5, as timm's nn.LayerNorm
            own_q = norm(own_q, 1e-5) * w[f"{prefix}.q_norm.weight"] + w[f"{prefix}.q_norm.bias"]
            own_k = norm(own_k, 1e-5) * w[f"{prefix}.k_norm.weight"] + w[f"{prefix}.k_norm.bias"]
        scores = torch.einsum("bnd,bmd->bnm", own_q, own_k) / math.sqrt(dim // heads)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out[..., part] = torch.einsum("bnm,bmd->bnd", weights, v[..., part])
    return out @ w[f"{prefix}.proj.weight"].T + w[f"{prefix}.proj.bias"]


def reference(w, x, t, label, *, depth, heads, dim, patch=2):
    """The forward pass from the state dict alone -> (velocity, outputs of the blocks)."""
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    grid = x.shape[-1] // patch
    tokens = []
    for row in range(grid):
        for column in range(grid):
            cell = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            kernel = w["x_embedder.proj.weight"].flatten(1)
            tokens.append(cell.flatten(1) @ kernel.T + w["x_embedder.proj.bias"])
    h = torch.stack(tokens, 1) + positions(dim, grid)
    rate = torch.tensor([10000 ** (-i / 128) for i in range(128)])
    wave = torch.cat([(t[:, None] * rate).cos(), (t[:, None] * rate).sin()], -1)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    c = time + w["y_embedder.embedding_table.weight"][label]
    outputs = []
    for i in range(depth):
        b = f"blocks.{i}"
        mods = linear(f"{b}.adaLN_modulation.1", F.silu(c))[:, None].split(dim, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = mods
        h = h + gate1 * attention(w, f"{b}.attn", norm(h) * (1 + scale1) + shift1, heads)
        inner = linear(f"{b}.mlp.fc1", norm(h) * (1 + scale2) + shift2)
        gelu = (
            0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        )
        h = h + gate2 * linear(f"{b}.mlp.fc2", gelu)
        outputs.append(h)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c))[:, None].split(dim, -1)
    patches = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    image = torch.zeros_like(x)
    for n in range(grid * grid):
        row, column = divmod(n, grid)
        cell = patches[:, n].view(-1, patch, patch, x.shape[1]).permute(0, 3, 1, 2)
        image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = cell
    return image, outputs


@pytest.mark.parametrize("changes", [{}, dict(qk_norm=True), dict(patch_size=4)], ids=str)
def test_against_the_written_out_reference(changes):
    model, (x, t, label) = tiny(**changes), inputs()
    out = model(x, t, label, taps=frozenset({Tap(1), Tap(2), Tap(3)}))
    patch = model.patch_size
    image, blocks = reference(
        model.state_dict(), x["image"], t, label, depth=3, heads=4, dim=48, patch=patch
    )
    torch.testing.assert_close(out.pred["image"], image, rtol=1e-4, atol=1e-5)
    for number in (1, 2, 3):  # tap k is the output of the k-th block, from 1
        tokens = out.tokens(number)
        torch.testing.assert_close(tokens.tokens, blocks[number - 1], rtol=1e-4, atol=1e-5)
        assert tokens.prefix == 0 and tokens.grid == (8 // patch, 8 // patch)


def test_reversed_time_mirrors_t_and_negates_the_velocity():
    """x_t = t x0 + (1 - t) eps has the velocity x0 - eps: ours at 1 - t with the other sign."""
    x, t, label = inputs()
    with torch.no_grad():
        reversed_ = tiny(reversed_time=True)(x, t, label).pred["image"]
        plain = tiny()(x, 1 - t, label).pred["image"]
    torch.testing.assert_close(reversed_, -plain)


def test_positions():
    torch.testing.assert_close(sincos_2d(48, (4, 4))[0], positions(48, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, dict(qk_norm=True), dict(patch_size=4), dict(patch_size=8)], ids=str
)
def test_contract(changes):
    check_backbone({**TINY, **changes})


# METHODS section 12: bare parameters in millions, 4 channels, 1000 classes, patch 2
@pytest.mark.parametrize(
    "size, millions", [((12, 768, 12), 130.30), ((24, 1024, 16), 457.82), ((28, 1152, 16), 674.82)]
)
def test_parameter_counts_of_the_papers(size, millions):
    with torch.device("meta"):
        sizes = dict(zip(("depth", "hidden_size", "num_heads"), size, strict=True))
        model = build(BACKBONES, dict(type="SiT", **sizes), input_size=32, in_channels=4)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.slow
def test_forward_cost_of_xl_in_both_countings():
    """118.6 GMAC with attention's products; fvcore's 114.456 without them counts LayerNorms (.07)
    too."""
    with torch.device("meta"):
        cfg = dict(type="SiT", depth=28, hidden_size=1152, num_heads=16)
        model = build(BACKBONES, cfg, input_size=32, in_channels=4)
    total = forward_macs(model).total / 1e9
    attention_products = 2 * 28 * 256**2 * 1152 / 1e9
    assert total == pytest.approx(118.6, abs=0.05)
    assert total - attention_products == pytest.approx(114.389, abs=0.01)


def test_keys_are_those_of_the_published_layout():
    block = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"}
    modules = {f"blocks.{i}.{n}" for i in range(3) for n in block}
    modules |= {"x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"}
    modules |= {"final_layer.linear", "final_layer.adaLN_modulation.1"}
    wanted = {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}
    wanted |= {"y_embedder.embedding_table.weight"}
    state = tiny().state_dict()
    assert set(state) == wanted
    assert state["y_embedder.embedding_table.weight"].shape == (11, 48)
    assert state["blocks.0.adaLN_modulation.1.weight"].shape == (288, 48)
    assert state["final_layer.linear.weight"].shape == (16, 48)
    norms = {f"blocks.{i}.attn.{n}_norm" for i in range(3) for n in "qk"}
    extra = {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")}
    assert set(tiny(qk_norm=True).state_dict()) == wanted | extra


def test_starts_at_zero_and_as_the_identity():
    torch.manual_seed(0)
    model, (x, t, label) = build(BACKBONES, TINY, **SIZES), inputs()
    out = model(x, t, label, taps=frozenset({Tap(1), Tap(3)}))
    assert (out.pred["image"] == 0).all()
    assert torch.equal(out.taps[Tap(1)], out.taps[Tap(3)])
    w = model.state_dict()
    fans = {"blocks.0.attn.qkv": 48 + 144, "blocks.2.mlp.fc1": 48 + 192, "x_embedder.proj": 48 + 16}
    for name, fan in fans.items():  # Xavier; the patch embedding as a linear layer
        weight, limit = w[f"{name}.weight"], math.sqrt(6 / fan)
        assert weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.07)
    for name in ("y_embedder.embedding_table", "t_embedder.mlp.0", "t_embedder.mlp.2"):
        assert w[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert all((value == 0).all() for name, value in w.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=5), "num_heads: 5 does not divide hidden_size 48; these do: .*4, 6"),
        (dict(patch_size=3), "patch_size: 3 does not divide"),
        (dict(depth=0), "depth: must be a positive integer, got 0"),
        (dict(depth="six"), "depth: must be a positive integer, got 'six'"),
        (dict(hidden_size=50, num_heads=5), "multiple of 4"),
        (dict(num_classes=0), "num_classes"),
        (dict(num_heads=0), "num_heads"),
        (dict(patch_size=0), "patch_size"),
        (dict(hidden_size=0), "hidden_size"),
        (dict(mlp_ratio=0), "mlp_ratio"),
        (dict(qk_norm="yes"), "qk_norm: must be True or False"),
    ],
    ids=str,
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(BACKBONES, {**TINY, **changes}, **SIZES)
