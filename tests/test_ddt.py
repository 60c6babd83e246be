"""Decoupled transformers (DDT, and the same split of DiT and MMDiT) written out."""

import pytest
import torch
import torch.nn.functional as F
from support.backbones import joint_block, moved, norm

from ahpa.registry import BACKBONES, ConfigError, build
from ahpa.registry.contracts import Tap, TextCond
from ahpa.testing.backbones import check_backbone

DDT = dict(type="DDT", depth=5, encoder_depth=2, hidden_size=48, num_heads=4, num_classes=10)
DIT = {**DDT, "type": "DDTDiT"}
MMDIT = dict(type="DDTMMDiT", depth=4, encoder_depth=2, hidden_size=48, num_heads=4, text_dim=20)


def taps_of(*blocks):
    return frozenset(Tap(block) for block in blocks)


@pytest.mark.parametrize(
    "backbone", [{**MMDIT, "pooled_dim": 7}, {**MMDIT, "encoder_depth": 3}], ids=str
)
def test_conformance(backbone):
    check_backbone(backbone)


def test_the_decoupled_pass_written_out():
    net = moved(DDT)
    x, t = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7])
    label = torch.tensor([1, 10])
    out = net(x, t, label, taps=taps_of(1, 2, 4))
    time = net.t_embedder(t)
    h, c = net.x_embedder(x["image"]) + net.pos_embed, time + net.y_embedder(label)
    taps = {}
    for number in (1, 2):
        h, _ = net.blocks[number - 1](h, c)
        taps[number] = h
    s = taps[2] = F.silu(time[:, None] + h)  # [B, N, D]
    h = net.decoder_embedder(x["image"]) + net.pos_embed
    for number in (3, 4, 5):
        block = net.blocks[number - 1]
        layer = block.adaLN_modulation[1]
        m = F.linear(s, layer.weight, layer.bias).chunk(6, dim=-1)
        attended, _ = block.attn(F.layer_norm(h, (48,), eps=1e-6) * (1 + m[1]) + m[0])
        h = h + m[2] * attended
        h = h + m[5] * block.mlp(F.layer_norm(h, (48,), eps=1e-6) * (1 + m[4]) + m[3])
        taps[number] = h
    layer = net.final_layer.adaLN_modulation[1]
    shift, scale = F.linear(s, layer.weight, layer.bias).chunk(2, dim=-1)
    last = net.final_layer.linear(F.layer_norm(h, (48,), eps=1e-6) * (1 + scale) + shift)
    torch.testing.assert_close(out.pred["image"], net.unpatchify(last), rtol=1e-5, atol=1e-5)
    for tap, tokens in out.taps.items():
        torch.testing.assert_close(tokens, taps[tap.block], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", [DDT, MMDIT], ids=["DDT", "DDTMMDiT"])
def test_checkpointing_gives_the_same_gradients(backbone):
    plain, saving = (
        build(BACKBONES, {**backbone, "gradient_checkpointing": on}, input_size=8, in_channels=4)
        for on in (False, True)
    )
    with torch.no_grad():
        for i, p in enumerate(plain.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    saving.load_state_dict(plain.state_dict())
    x, t = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7])
    cond = TextCond(torch.randn(2, 5, 20)) if backbone is MMDIT else torch.tensor([1, 10])
    for net in (plain, saving):
        net.train()(x, t, cond).pred["image"].square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_on_dit_it_is_the_same_split_of_the_steps_numbers():
    dit = moved(DIT)
    ddt = build(BACKBONES, {**DDT, "learn_sigma": True}, input_size=8, in_channels=4).eval()
    ddt.load_state_dict(dit.state_dict())
    x, label = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([1, 10])
    index = torch.tensor([3, 640])
    ours = dit(x, index / 1000, label, taps_of(2))
    theirs = ddt(x, index.float(), label, taps_of(2))
    assert ours.pred["image"].shape == (2, 8, 8, 8)
    torch.testing.assert_close(ours.pred["image"], theirs.pred["image"])
    torch.testing.assert_close(ours.taps[Tap(2)], theirs.taps[Tap(2)])


@pytest.mark.parametrize("pooled", [None, 7])
def test_the_decoupled_joint_pass_written_out(pooled):
    """With plain operations: in the decoder the image half has a modulation for each token, the
    text half the time's."""
    net = moved({**MMDIT, "pooled_dim": pooled})
    x, t = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7])
    cond = TextCond(torch.randn(2, 5, 20), None if pooled is None else torch.randn(2, pooled))
    out, w = net(x, t, cond, taps=taps_of(1, 2, 3, 4)), net.state_dict()

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    c = time = net.t_embedder(t)
    if pooled is not None:
        c = time + linear("y_embedder.mlp.2", F.silu(linear("y_embedder.mlp.0", cond.pooled)))
    own = c[:, None].expand(-1, 16, -1)  # the encoder's, the same for each image token
    image = net.x_embedder(x["image"]) + net.pos_embed
    text = linear("context_embedder", cond.tokens)
    for i in range(4):
        if i == 2:
            own = time[:, None] + image
            torch.testing.assert_close(out.taps[Tap(2)], F.silu(own), rtol=1e-4, atol=1e-5)
            kernel, bias = w["decoder_embedder.proj.weight"], w["decoder_embedder.proj.bias"]
            image = F.conv2d(x["image"], kernel, bias, stride=2).flatten(2).mT + net.pos_embed
        text, image = joint_block(w, i, text, image, [F.silu(c)[:, None], F.silu(own)])
        if i != 1:
            torch.testing.assert_close(out.taps[Tap(i + 1)], image, rtol=1e-4, atol=1e-5)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(own)).split(48, -1)
    wanted = net.unpatchify(linear("final_layer.linear", norm(image) * (1 + scale) + shift))
    torch.testing.assert_close(out.pred["image"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", [DDT, DIT, {**MMDIT, "depth": 5}], ids=["DDT", "DiT", "MMDiT"])
def test_both_halves_need_a_block(backbone):
    with pytest.raises(ConfigError, match=r"1\.\.4"):
        build(BACKBONES, {**backbone, "encoder_depth": 5}, input_size=8, in_channels=4)
