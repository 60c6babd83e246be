"""MMDiT against a slow reference written out with plain operations, REPA's parameter count, and the
keys of the published layout."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from support.backbones import gelu, moved, norm
from test_sit import positions

from ahpa.analysis.cost import forward_macs
from ahpa.registry import BACKBONES, ConfigError, build
from ahpa.registry.contracts import Tap, TextCond
from ahpa.testing.backbones import check_backbone

TINY = dict(type="MMDiT", depth=3, hidden_size=48, num_heads=4, text_dim=20)
SIZES = dict(input_size=8, in_channels=4)


def tiny(**changes):
    return moved(TINY, **changes)


def inputs(pooled=None):
    values = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(3, 4, 8, 8, generator=values), torch.randn(3, 5, 20, generator=values)
    pooled = None if pooled is None else torch.randn(3, pooled, generator=values)
    return {"image": x}, torch.tensor([0.0, 0.37, 1.0]), TextCond(tokens, pooled)


def reference(w, x, t, cond, *, depth, heads, dim, patch=2):
    """The forward pass from the state dict alone -> (velocity, image tokens after each block).

    Each query's softmax over all keys is written out modality by modality, without joining the
    sequences.
    """
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    side = x.shape[-1] // patch
    cells = [
        x[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
        for r in range(side)
        for c in range(side)
    ]
    kernel = w["x_embedder.proj.weight"].flatten(1)
    image = torch.stack(
        [cell.flatten(1) @ kernel.T + w["x_embedder.proj.bias"] for cell in cells], 1
    )
    image, text = image + positions(dim, side), linear("context_embedder", cond.tokens)
    rate = torch.tensor([10000 ** (-i / 128) for i in range(128)])
    wave = torch.cat([(t[:, None] * rate).cos(), (t[:, None] * rate).sin()], -1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    if cond.pooled is not None:
        c = c + linear("y_embedder.mlp.2", F.silu(linear("y_embedder.mlp.0", cond.pooled)))
    outputs, width = [], dim // heads
    for i in range(depth):
        half = {"text": f"joint_blocks.{i}.context_block", "image": f"joint_blocks.{i}.x_block"}
        tokens, mods, q, k, v = {"text": text, "image": image}, {}, {}, {}, {}
        for kind, name in half.items():
            mods[kind] = linear(f"{name}.adaLN_modulation.1", F.silu(c))[:, None].split(dim, -1)
            modulated = norm(tokens[kind]) * (1 + mods[kind][1]) + mods[kind][0]
            packed = linear(f"{name}.attn.qkv", modulated).split(dim, -1)
            q[kind], k[kind], v[kind] = (part.unflatten(-1, (heads, width)) for part in packed)
            for which, part in (("q", q), ("k", k)):
                if f"{name}.attn.ln_{which}.weight" in w:  # over one head's channels
                    gain, bias = (w[f"{name}.attn.ln_{which}.{n}"] for n in ("weight", "bias"))
                    part[kind] = norm(part[kind]) * gain + bias
        last = i == depth - 1
        assert len(mods["text"]) == (2 if last else 6) and len(mods["image"]) == 6
        for kind, name in half.items():
            if last and kind == "text":
                continue
            out = torch.zeros_like(q[kind])  # [B, tokens, H, D/H]
            for head in range(heads):
                own = q[kind][:, :, head] / math.sqrt(width)
                parts = {of: (own @ k[of][:, :, head].mT).exp() for of in half}
                total = sum(part.sum(-1, keepdim=True) for part in parts.values())  # one softmax
                out[:, :, head] = sum(parts[of] @ v[of][:, :, head] / total for of in half)
            out = out.flatten(2)
            _, _, gate, shift, scale, gate_mlp = mods[kind]
            h = tokens[kind] + gate * linear(f"{name}.attn.proj", out)
            inner = linear(f"{name}.mlp.fc1", norm(h) * (1 + scale) + shift)
            tokens[kind] = h + gate_mlp * linear(f"{name}.mlp.fc2", gelu(inner))
        text, image = tokens["text"], tokens["image"]
        outputs.append(image)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c))[:, None].split(dim, -1)
    patches = linear("final_layer.linear", norm(image) * (1 + scale) + shift)
    velocity = torch.zeros_like(x)
    for n in range(side * side):
        r, col = divmod(n, side)
        cell = patches[:, n].view(-1, patch, patch, x.shape[1]).permute(0, 3, 1, 2)
        velocity[:, :, r * patch : (r + 1) * patch, col * patch : (col + 1) * patch] = cell
    return velocity, outputs


@pytest.mark.parametrize(
    "changes", [{}, dict(qk_norm=True), dict(patch_size=4), dict(pooled_dim=7)], ids=str
)
def test_against_the_written_out_reference(changes):
    model, (x, t, cond) = tiny(**changes), inputs(changes.get("pooled_dim"))
    out = model(x, t, cond, taps=frozenset({Tap(1), Tap(2), Tap(3)}))
    patch = model.patch_size
    velocity, blocks = reference(
        model.state_dict(), x["image"], t, cond, depth=3, heads=4, dim=48, patch=patch
    )
    torch.testing.assert_close(out.pred["image"], velocity, rtol=1e-4, atol=1e-5)
    for number in (1, 2, 3):  # tap k is the image tokens after the k-th block, from 1
        tokens = out.tokens(number)
        torch.testing.assert_close(tokens.tokens, blocks[number - 1], rtol=1e-4, atol=1e-5)
        assert tokens.prefix == 0 and tokens.grid == (8 // patch, 8 // patch)


@pytest.mark.parametrize(
    "changes", [{}, dict(qk_norm=True), dict(patch_size=4), dict(pooled_dim=7)], ids=str
)
def test_contract(changes):
    check_backbone({**TINY, **changes})


def test_parameter_count_of_the_text_to_image_setting():
    """About 505.1 M. By hand: a full half has D(3D+3) + D(D+1) + 4D(D+1) + D(4D+1) + 6D(D+1) =
    18 D^2 + 15 D, a pre-only half 3D(D+1) + 2D(D+1) = 5 D^2 + 5 D."""
    with torch.device("meta"):
        model = build(BACKBONES, dict(type="MMDiT"), input_size=32, in_channels=4)
    d, full, pre = 768, 18 * 768**2 + 15 * 768, 5 * 768**2 + 5 * 768
    outside = (16 * d + d) + (256 * d + d) + (d * d + d) + (768 * d + d)
    outside += 2 * (d * d + d) + (16 * d + 16)
    count = sum(p.numel() for p in model.parameters())
    assert count == 47 * full + pre + outside == 505_070_608
    assert (model.depth, model.hidden_size, model.num_heads) == (24, 768, 24)
    assert model.joint_blocks[0].x_block.attn.num_heads == 24


def test_forward_cost_counts_both_modalities():
    """Attention: 23 blocks of (N+T)^2 and one of N (N+T), twice each, times the width."""
    with torch.device("meta"):
        model = build(BACKBONES, dict(type="MMDiT"), input_size=32, in_channels=4)
    total, products = forward_macs(model)
    n, text, d = 256, 77, 768
    assert products == 2 * d * (23 * (n + text) ** 2 + n * (n + text))
    per_token = 12 * d * d  # qkv 3, proj 1, MLP 8
    modulation = (47 * 6 + 2 + 2) * d * d
    edges = n * 16 * d * 2 + text * 768 * d + 256 * d + d * d
    tokens = 24 * n * per_token + 23 * text * per_token + text * 3 * d * d
    assert total - products == tokens + modulation + edges


def layout(shared):
    """Recorded keys and shapes of REPA's text-to-image model; block 0 stands for all but the
    last."""
    text = (shared / "design" / "checkpoint_layouts.md").read_text()
    section = text.split("## REPA text-to-image MMDiT\n")[1].split("\n## ")[0]
    listed = re.findall(r"^(\S+) \(([\d, ]+)\)$", section, flags=re.MULTILINE)
    numbers = {name: shape.replace(" ", "").strip(",").split(",") for name, shape in listed}
    found = {name: tuple(int(n) for n in shape) for name, shape in numbers.items()}
    for name, shape in list(found.items()):
        for number in (1, 2):
            if name.startswith("joint_blocks.0."):
                found[name.replace(".0.", f".{number}.", 1)] = shape
    return found


def test_keys_and_shapes_are_those_of_the_published_layout(shared):
    """Except for the fixed positions and REPA's projector, which are not in the state dict."""
    wanted = layout(shared)
    assert wanted.pop("pos_embed") == (1, 256, 128)
    wanted = {name: shape for name, shape in wanted.items() if not name.startswith("projectors.")}
    with torch.device("meta"):
        cfg = dict(type="MMDiT", depth=4, hidden_size=128, num_heads=4)
        model = build(BACKBONES, cfg, input_size=32, in_channels=4)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    assert model.pos_embed.shape == (1, 256, 128)


def test_the_last_text_half_only_feeds_the_attention():
    model, (x, t, cond) = tiny(qk_norm=True), inputs()
    last, before = model.joint_blocks[-1].context_block, model.joint_blocks[0].context_block
    assert not hasattr(last, "mlp") and not hasattr(last.attn, "proj")
    assert hasattr(before, "mlp") and hasattr(before.attn, "proj")
    model(x, t, cond).pred["image"].square().mean().backward()
    q, k, v = last.attn.qkv.weight.grad.chunk(3)
    assert (
        (q == 0).all() and k.abs().max() > 0 and v.abs().max() > 0
    )  # nothing reads the text's last queries
    assert all(part.abs().max() > 0 for part in before.attn.qkv.weight.grad.chunk(3))
    assert all(p.grad is not None for p in model.parameters())


def test_text_tokens_are_a_set_and_image_tokens_are_not():
    """Text has no positions in the model (the encoder gave them): the order of text tokens does not
    matter, their content does."""
    model, (x, t, cond) = tiny(), inputs()
    plain = model(x, t, cond).pred["image"]
    turned = model(x, t, TextCond(cond.tokens[:, [4, 2, 0, 1, 3]])).pred["image"]
    torch.testing.assert_close(plain, turned, rtol=1e-4, atol=1e-6)
    other = model(x, t, TextCond(cond.tokens * 2)).pred["image"]
    assert not torch.allclose(plain, other, atol=1e-3)
    flipped = model({"image": x["image"].flip(-1)}, t, cond).pred["image"].flip(-1)
    assert not torch.allclose(plain, flipped, atol=1e-3)


def test_starts_at_zero_and_as_the_identity():
    torch.manual_seed(0)
    model, (x, t, cond) = build(BACKBONES, {**TINY, "pooled_dim": 7}, **SIZES), inputs(7)
    out = model(x, t, cond, taps=frozenset({Tap(1), Tap(3)}))
    assert (out.pred["image"] == 0).all()
    assert torch.equal(out.taps[Tap(1)], out.taps[Tap(3)])
    w = model.state_dict()
    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.2"):
        assert w[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.1)
    fans = {"joint_blocks.2.context_block.attn.qkv": 48 + 144, "x_embedder.proj": 48 + 16}
    for name, fan in fans.items():
        weight, limit = w[f"{name}.weight"], math.sqrt(6 / fan)
        assert weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.07)
    zero = [name for name in w if name.endswith("bias") or "adaLN" in name]
    assert all((w[name] == 0).all() for name in zero)


def test_without_adaln_zero_the_start_is_pytorchs():
    """As in REPA's text-to-image code: no weight is set, so the first prediction is not zero."""
    torch.manual_seed(0)
    model, (x, t, cond) = build(BACKBONES, {**TINY, "adaln_zero": False}, **SIZES), inputs()
    assert model(x, t, cond).pred["image"].abs().mean() > 0.01
    # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    weight = model.joint_blocks[0].x_block.adaLN_modulation[1].weight
    assert float(weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * 48), rel=0.03)


def test_pooled_text_changes_the_output_and_is_asked_for():
    model, (x, t, cond) = tiny(pooled_dim=7), inputs(7)
    out = model(x, t, cond).pred["image"]
    other = model(x, t, TextCond(cond.tokens, -cond.pooled)).pred["image"]
    assert not torch.allclose(out, other, atol=1e-4)
    with pytest.raises(ValueError, match=r"pooled text must be \[B, 7\], got none"):
        model(x, t, TextCond(cond.tokens))
    plain = tiny()
    given, left_out = plain(x, t, cond), plain(x, t, TextCond(cond.tokens))
    assert torch.equal(given.pred["image"], left_out.pred["image"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=5), "these do"),
        (dict(patch_size=3), "patch_size"),
        (dict(depth=0), "depth"),
        (dict(hidden_size=50, num_heads=5), "multiple of 4"),
        (dict(text_dim=0), "text_dim"),
        (dict(pooled_dim=0), "pooled_dim"),
        (dict(num_heads=0), "num_heads"),
        (dict(mlp_ratio=0), "mlp_ratio"),
    ],
    ids=str,
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(BACKBONES, {**TINY, **changes}, **SIZES)


def test_conditions_that_do_not_fit():
    model, (x, t, _) = tiny(), inputs()
    with pytest.raises(ValueError, match=r"\[B, T, 20\], got \[3, 5, 21\]"):
        model(x, t, TextCond(torch.zeros(3, 5, 21)))
    with pytest.raises(ValueError, match="TextCond of a text encoder, got Tensor"):
        model(x, t, torch.zeros(3, dtype=torch.long))
