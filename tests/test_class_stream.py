"""Backbones with a class stream (REG): published layout, parameter counts, forward passes
written out with plain operations, and the class vector in loss, sampler and guidance."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.backbones import joint_block, linear, moved, norm

from ahpa.registry import (
    BACKBONES,
    FLOW_LOSSES,
    FLOWS,
    GUIDANCES,
    SAMPLERS,
    ConfigError,
    build,
)
from ahpa.registry.contracts import BackboneOutput, Clean, Condition, Tap, TargetView, TextCond
from ahpa.testing.common import toy_geometry

SIZES = dict(input_size=8, in_channels=4)
SIT = dict(
    type="ClassStreamSiT", depth=3, hidden_size=48, num_heads=4, num_classes=10, class_width=16
)
DIT = {**SIT, "type": "ClassStreamDiT"}
MMDIT = dict(
    type="ClassStreamMMDiT", depth=3, hidden_size=48, num_heads=4, text_dim=20, class_width=16
)


def streams(batch):
    return {"image": torch.randn(batch, 4, 8, 8), "cls": torch.randn(batch, 16)}


def test_the_published_layout():
    """Keys and shapes as published, for width 48 and class width 16."""
    state = build(BACKBONES, SIT, **SIZES).state_dict()
    wanted = {
        "cls_projectors2.weight": (48, 16),
        "cls_projectors2.bias": (48,),
        "wg_norm.weight": (48,),
        "wg_norm.bias": (48,),
        "final_layer.linear_cls.weight": (16, 48),
        "final_layer.linear_cls.bias": (16,),
        "final_layer.linear.weight": (16, 48),
        "y_embedder.embedding_table.weight": (11, 48),
    }
    assert {name: tuple(state[name].shape) for name in wanted} == wanted


@pytest.mark.parametrize(
    "sizes, millions", [((12, 768, 12), 132), ((24, 1024, 16), 460), ((28, 1152, 16), 677)]
)
def test_parameters_are_the_papers(sizes, millions):
    depth, width, heads = sizes
    cfg = dict(type="ClassStreamSiT", depth=depth, hidden_size=width, num_heads=heads)
    with torch.device("meta"):
        net = build(BACKBONES, cfg, input_size=32, in_channels=4)
    assert abs(sum(p.numel() for p in net.parameters()) / 1e6 - millions) < 1


def test_the_forward_pass_written_out():
    net = moved(SIT)
    x, t, label = streams(2), torch.tensor([0.2, 0.7]), torch.tensor([1, 10])
    out = net(x, t, label, taps=frozenset({Tap(2)}))
    projected = x["cls"] @ net.cls_projectors2.weight.T + net.cls_projectors2.bias
    first = F.layer_norm(projected, (48,), net.wg_norm.weight, net.wg_norm.bias, eps=1e-6)
    patches = net.x_embedder(x["image"]) + net.pos_embed
    h = torch.cat([first[:, None], patches], dim=1)
    c = net.t_embedder(t) + net.y_embedder(label)
    for block in net.blocks[:2]:
        h, _ = block(h, c)
    assert out.prefix == 1 and out.tokens(2).prefix == 1
    assert torch.allclose(out.tokens(2).tokens, h, atol=1e-6)
    h, _ = net.blocks[2](h, c)
    shift, scale = net.final_layer.adaLN_modulation(c).chunk(2, dim=-1)
    h = F.layer_norm(h, (48,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    last = net.final_layer.linear_cls
    torch.testing.assert_close(out.pred["cls"], h[:, 0] @ last.weight.T + last.bias)
    wanted = net.unpatchify(net.final_layer.linear(h[:, 1:]))
    torch.testing.assert_close(out.pred["image"], wanted)


@pytest.mark.parametrize("cfg", [SIT, DIT, MMDIT], ids=lambda cfg: cfg["type"])
def test_the_class_tokens_norm_has_regs_eps(cfg):
    """REG's code divides by sqrt(variance + 1e-6), which a small class vector makes visible."""
    net = moved(cfg)
    x = streams(2)
    x["cls"] = 1e-3 * x["cls"]
    net.cls_projectors2.bias.data.zero_()
    token = net.embed(x)[:, 0]
    projected = x["cls"] @ net.cls_projectors2.weight.T
    centred = projected - projected.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    wanted = centred / (variance + 1e-6).sqrt() * net.wg_norm.weight + net.wg_norm.bias
    torch.testing.assert_close(token, wanted)


def test_the_class_vector_is_a_key_of_the_tapped_attention():
    """Token 0 has a row and a column in the logits, and `without_prefix` drops its tokens."""
    net, (x, t, label) = moved(SIT), (streams(2), torch.tensor([0.2, 0.7]), torch.tensor([1, 10]))
    taps = frozenset({Tap(1), Tap(1, "attention")})
    out = net(x, t, label, taps=taps, stop=1)
    other = net({**x, "cls": -x["cls"]}, t, label, taps=taps, stop=1)
    before, after = (o.taps[Tap(1, "attention")] for o in (out, other))
    assert before.shape == (2, 4, 17, 17)
    assert torch.equal(before[:, :, 1:, 1:], after[:, :, 1:, 1:])  # first block: from its input
    assert not torch.allclose(before[:, :, 0], after[:, :, 0])
    assert not torch.allclose(before[:, :, :, 0], after[:, :, :, 0])
    assert out.tokens(1).without_prefix().tokens.shape == (2, 16, 48)


@pytest.mark.parametrize("name", ["ClassStreamSiT", "ClassStreamDiT"])
def test_training_starts_from_zero_predictions(name):
    net = build(BACKBONES, {**SIT, "type": name}, **SIZES)
    pred = net(streams(2), torch.rand(2), torch.tensor([1, 10])).pred
    assert all((part == 0).all() for part in pred.values())


@pytest.mark.parametrize("width", [0, -3, 2.5, None])
@pytest.mark.parametrize("cfg", [SIT, DIT, MMDIT], ids=lambda cfg: cfg["type"])
def test_a_class_width_that_is_refused(cfg, width):
    with pytest.raises(ConfigError, match="class_width: must be a positive integer"):
        build(BACKBONES, {**cfg, "class_width": width}, **SIZES)


@pytest.mark.parametrize("shape", [(2, 15), (2, 1, 16)], ids=str)
def test_a_class_vector_of_another_shape(shape):
    x = {**streams(2), "cls": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"'cls' must be \[B, 16\]"):
        moved(SIT)(x, torch.rand(2), torch.tensor([1, 10]))


def test_a_class_vector_that_is_missing():
    with pytest.raises(ValueError, match=r"'cls' must be \[B, 16\], got nothing"):
        moved(SIT)({"image": torch.zeros(2, 4, 8, 8)}, torch.rand(2), torch.tensor([1, 10]))


# ---- DiT -----------------------------------------------------------------------------------------


def test_dit_is_sit_on_the_numbers_of_the_steps():
    """The same weights, given 1000 t where SiT is given t; the class vector has no variance."""
    dit = moved(DIT)
    sit = build(BACKBONES, {**SIT, "learn_sigma": True}, **SIZES).eval()
    sit.load_state_dict(dit.state_dict())
    x, taps = streams(2), frozenset({Tap(2)})
    index, label = torch.tensor([37, 999]), torch.tensor([1, 10])
    ours, theirs = dit(x, index / 1000, label, taps), sit(x, index.float(), label, taps)
    assert ours.pred["image"].shape == (2, 8, 8, 8) and ours.pred["cls"].shape == (2, 16)
    for name, value in ours.pred.items():
        torch.testing.assert_close(value, theirs.pred[name])
    torch.testing.assert_close(ours.taps[Tap(2)], theirs.taps[Tap(2)])


# ---- MMDiT ---------------------------------------------------------------------------------------


def test_the_joint_pass_written_out():
    """MMDiT's blocks over 5 text tokens and 1 + 16 image tokens: one softmax over all 22."""
    net = moved(MMDIT)
    x, t, cond = streams(2), torch.tensor([0.2, 0.7]), TextCond(torch.randn(2, 5, 20))
    out, w = net(x, t, cond, taps=frozenset({Tap(1), Tap(2), Tap(3)})), net.state_dict()
    token = norm(linear(w, "cls_projectors2", x["cls"]), eps=1e-6)
    token = token * w["wg_norm.weight"] + w["wg_norm.bias"]
    patches = net.x_embedder(x["image"]) + net.pos_embed
    image = torch.cat([token[:, None], patches], 1)  # [B, 17, D]
    text, c = linear(w, "context_embedder", cond.tokens), F.silu(net.t_embedder(t))
    for i in range(3):
        text, image = joint_block(w, i, text, image, [c[:, None]] * 2)
        assert out.tokens(i + 1).prefix == 1
        torch.testing.assert_close(out.tokens(i + 1).tokens, image, rtol=1e-4, atol=1e-5)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", c)[:, None].split(48, -1)
    final = norm(image) * (1 + scale) + shift
    wanted = linear(w, "final_layer.linear_cls", final[:, 0])
    torch.testing.assert_close(out.pred["cls"], wanted, rtol=1e-4, atol=1e-5)
    wanted = net.unpatchify(linear(w, "final_layer.linear", final[:, 1:]))
    torch.testing.assert_close(out.pred["image"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_text_starts_zero_or_as_pytorch_does(zero):
    net = build(BACKBONES, {**MMDIT, "adaln_zero": zero}, **SIZES)
    pred = net(streams(1), torch.tensor([0.5]), TextCond(torch.randn(1, 5, 20))).pred
    assert all(bool((part == 0).all()) == zero for part in pred.values())


# ---- with a discrete flow, its loss, its sampler and guidance ------------------------------------


def parts_of(loss_weights, streams):
    """DiscreteFlow and HybridLoss for latents [4, 4, 4]."""
    geometry = toy_geometry(resolution=32, out_channels=8, streams=streams)
    flow = build(FLOWS, dict(type="DiscreteFlow"), geometry=geometry)
    cfg = dict(type="HybridLoss", weights=loss_weights)
    return flow, build(FLOW_LOSSES, cfg, geometry=geometry, flow=flow)


def view_of(noised, pred):
    return TargetView(
        Clean(noised.data), noised, Condition(None), BackboneOutput(pred, {}, 1, (2, 2))
    )


def test_the_hybrid_loss_takes_the_plain_square_of_the_vector():
    flow, loss = parts_of(dict(cls=0.03), dict(cls=(16,)))
    data = {"image": torch.randn(5, 4, 4, 4), "cls": torch.randn(5, 16)}
    noised = flow.sample(data, torch.Generator().manual_seed(0))
    pred = {"image": torch.randn(5, 8, 4, 4), "cls": torch.randn(5, 16)}
    terms = {term.name: term for term in loss(view_of(noised, pred)).terms}
    assert set(terms) == {"flow", "flow/cls", "flow/vlb"}
    errors = (pred["cls"] - noised.noise["cls"]).tolist()
    by_hand = sum(e**2 for row in errors for e in row) / (5 * 16)
    assert float(terms["flow/cls"].value) == pytest.approx(by_hand, rel=1e-5)
    assert float(terms["flow/cls"].weight) == pytest.approx(0.03)
    image = pred["image"][:, :4] - noised.noise["image"]
    torch.testing.assert_close(terms["flow"].value, image.square().mean())

    _, alone = parts_of({}, {})
    image_only = replace(noised, target={"image": noised.target["image"]})
    view = view_of(image_only, {"image": pred["image"]})
    bound = next(term for term in alone(view).terms if term.name == "flow/vlb")
    assert torch.equal(bound.value, terms["flow/vlb"].value)


def chain():
    """abar at steps 0, 500 and 999 of betas 1e-4 .. 0.02, in plain numbers."""
    abar, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        abar.append(product)
    return abar[0], abar[500], abar[999]


def test_ddpm_steps_the_vector_with_beta_tilde_and_the_image_with_its_own_variance():
    low, mid, high = chain()
    double = torch.float64
    x = {
        "image": torch.full((1, 4, 1, 1), 0.9, dtype=double),
        "cls": torch.full((1, 2), 0.9, dtype=double),
    }
    kick, seen = 1.5, []

    def model(state, t):
        seen.append((float(state["image"][0, 0, 0, 0]), float(state["cls"][0, 0])))
        ones = torch.ones_like(state["image"])  # v = 1: the variance is beta
        return {"image": torch.cat([0.3 * state["image"], ones], 1), "cls": 0.3 * state["cls"]}

    def noise(state):
        return {name: torch.full_like(value, kick) for name, value in state.items()}

    flow, _ = parts_of({}, dict(cls=(2,)))
    sampler = build(SAMPLERS, dict(type="ddpm"))
    out = sampler.sample(model, x, steps=3, path=flow.path, noise=noise)
    image = cls = 0.9
    for abar, before in ((high, mid), (mid, low), (low, 1.0)):
        beta = 1 - abar / before
        small = (1 - before) / (1 - abar) * beta  # DDPM section 3.2: beta_tilde
        assert seen.pop(0) == pytest.approx((image, cls), rel=1e-5)
        shrink = (1 - beta / math.sqrt(1 - abar) * 0.3) / math.sqrt(1 - beta)  # DDPM eq. 11
        last = before == 1.0
        image = shrink * image + (0 if last else math.sqrt(beta) * kick)
        cls = shrink * cls + (0 if last else math.sqrt(small) * kick)
    assert float(out["image"][0, 0, 0, 0]) == pytest.approx(image, rel=1e-5)
    assert float(out["cls"][0, 0]) == pytest.approx(cls, rel=1e-5)


def test_guided_channels_of_the_image_leave_the_vector_guided_whole():
    net, x = moved(DIT), streams(2)
    label, null = torch.tensor([1, 2]), torch.tensor([10, 10])

    def predict(state, t, cond):
        return net(state, t, cond).pred

    guidance = build(GUIDANCES, dict(type="classifier-free", scale=2.5, channels=3))
    out = guidance.guide(predict, label, null)(x, torch.tensor(0.5))
    own, bare = (predict(x, torch.full((2,), 0.5), cond) for cond in (label, null))
    guided = {name: bare[name] + 2.5 * (own[name] - bare[name]) for name in own}
    torch.testing.assert_close(out["cls"], guided["cls"])
    torch.testing.assert_close(out["image"][:, :3], guided["image"][:, :3])
    rest = out["image"][:, 3:]  # the fourth channel, and the variance
    torch.testing.assert_close(rest, own["image"][:, 3:])
