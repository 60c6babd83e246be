"""Several noisings of each image, aligned with each other, on a decoupled transformer (DUPA), written out."""

import pytest
import torch
import torch.nn.functional as F

from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import BACKBONES, FLOWS, MODELS, ConfigError, build
from ahpa.testing import check_backbone

DDT = dict(type="DDT", depth=5, encoder_depth=2, hidden_size=48, num_heads=4, num_classes=10)
VIEWS = dict(
    type="ViewAlignment", tap=2, out_dim=12, weight=0.5, projector=dict(type="MLPProjector", hidden_dim=24, gain=0.5)
)


def model(*, views=2, **changes):
    torch.manual_seed(0)
    own = build(MODELS, {**dict(
        type="AlignedDenoiser", resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"), ema=0.9,
        backbone=DDT, flow=dict(type="Flow", views=views), alignments=dict(views=VIEWS)), **changes})  # fmt: skip
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return own


def test_conformance():
    check_backbone(DDT)


def test_the_decoupled_pass_written_out():
    net = model().backbone
    x, t, label = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7]), torch.tensor([1, 10])
    out = net(x, t, label, taps=frozenset({1, 2, 4}))
    time = net.t_embedder(t)
    h, c = net.x_embedder(x["image"]) + net.pos_embed, time + net.y_embedder(label)
    taps = {}
    for number in (1, 2):
        taps[number] = h = net.blocks[number - 1](h, c)
    s = taps[2] = F.silu(time[:, None] + h)  # [B, N, D]
    h = net.decoder_embedder(x["image"]) + net.pos_embed
    for number in (3, 4, 5):
        block = net.blocks[number - 1]
        m = F.linear(s, block.adaLN_modulation[1].weight, block.adaLN_modulation[1].bias).chunk(6, dim=-1)
        h = h + m[2] * block.attn(F.layer_norm(h, (48,), eps=1e-6) * (1 + m[1]) + m[0])
        taps[number] = h = h + m[5] * block.mlp(F.layer_norm(h, (48,), eps=1e-6) * (1 + m[4]) + m[3])
    layer = net.final_layer.adaLN_modulation[1]
    shift, scale = F.linear(s, layer.weight, layer.bias).chunk(2, dim=-1)
    wanted = net.unpatchify(net.final_layer.linear(F.layer_norm(h, (48,), eps=1e-6) * (1 + scale) + shift))
    torch.testing.assert_close(out.pred["image"], wanted, rtol=1e-5, atol=1e-5)
    for number, tokens in out.taps.items():
        torch.testing.assert_close(tokens.tokens, taps[number], rtol=1e-5, atol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    plain, saving = (
        build(BACKBONES, {**DDT, "gradient_checkpointing": on}, input_size=8, in_channels=4) for on in (False, True)
    )
    with torch.no_grad():
        for i, p in enumerate(plain.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    saving.load_state_dict(plain.state_dict())
    x, t, label = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7]), torch.tensor([1, 10])
    for net in (plain, saving):
        net.train()(x, t, label).pred["image"].square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_each_view_has_its_own_time_and_noise(views):
    data = {"image": torch.randn(4, 4, 8, 8)}
    noisy = build(FLOWS, dict(type="Flow", views=views)).sample(data, torch.Generator().manual_seed(0))
    assert noisy.views == views and noisy.x["image"].shape == (4 * views, 4, 8, 8)
    assert len(set(noisy.t.tolist())) == 4 * views
    for part in noisy.data["image"].chunk(views):
        assert torch.equal(part, data["image"])
    s = noisy.t[:, None, None, None]
    torch.testing.assert_close(noisy.x["image"], (1 - s) * noisy.data["image"] + s * noisy.noise["image"])


@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_written_out(views):
    own = model(views=views)
    batch = {**synthetic_batch(own, batch=2), "noise_seed": 4}
    seen = []
    own.backbone.register_forward_hook(lambda module, args, out: seen.append((args, out)))
    losses = own.loss(batch)
    (_x, _t, label), out = seen[0][0][:3], seen[0][1]
    assert torch.equal(label, label[:2].repeat(views))  # one draw of the label dropout for all views of an image
    z = [own.alignments["views"].projector.mlp(part) for part in out.taps[2].tokens.chunk(views)]
    cosines = [F.cosine_similarity(z[i], z[j], dim=-1).mean() for i in range(views) for j in range(i)]
    torch.testing.assert_close(
        losses["loss_views_cosine"], 0.5 * (1 - torch.stack(cosines).mean()), rtol=1e-4, atol=1e-6
    )
    step = own.begin(batch)
    noisy = own.flow.sample(own.encode(step), step.generator)
    per_view = [
        (a - b).square().mean()
        for a, b in zip(out.pred["image"].chunk(views), noisy.target["image"].chunk(views), strict=True)
    ]
    torch.testing.assert_close(losses["loss_flow"], torch.stack(per_view).mean())


def test_both_sides_learn():
    """No stop-gradient: holding the other view fixed gives another gradient."""
    own = model()
    batch = {**synthetic_batch(own, batch=2), "noise_seed": 4}
    own.loss(batch)["loss_views_cosine"].backward()
    grads = [p.grad.clone() for p in own.alignments["views"].projector.parameters()]
    own.zero_grad(set_to_none=True)
    step = own.begin(batch)
    step.noisy = own.flow.sample(own.encode(step), step.generator)
    label = own.conditioner(step).repeat(2)
    tokens = own.backbone(step.noisy.x, step.noisy.t, label, taps=frozenset({2})).taps[2].tokens
    a, b = own.alignments["views"].projector.mlp(tokens).chunk(2)
    (0.5 * (1 - F.cosine_similarity(a, b.detach(), dim=-1).mean())).backward()
    held = [p.grad for p in own.alignments["views"].projector.parameters()]
    assert any(not torch.allclose(x, y, rtol=1e-3) for x, y in zip(grads, held, strict=True))


def test_priors_of_the_images_serve_all_views():
    ahpa = dict(tap=1, source="vae", router=dict(type="MLPRouter"))
    own = model(priors=dict(vae=dict(type="VAETaps")), alignments=dict(views=VIEWS, ahpa=ahpa))
    terms = own.loss({**synthetic_batch(own), "diagnose": True})
    assert terms["loss_ahpa_cosine"].isfinite() and terms["loss_views_cosine"].isfinite()


def test_the_projectors_start_is_never_zero_and_its_gain_is_reduced():
    wide = dict(type="MLPProjector", depth=3, hidden_dim=512)
    linear = {gain: model(alignments=dict(views={**VIEWS, "projector": {**wide, "gain": gain}})).alignments["views"].projector.mlp[2].weight
              for gain in (1.0, 0.25)}  # fmt: skip
    assert (
        0.5 < float(linear[0.25].detach().std() / linear[1.0].detach().std()) < 0.95
    )  # 0.05 of noise was added to both


@pytest.mark.parametrize("changes, word", [
    (dict(backbone={**DDT, "encoder_depth": 5}), "1..4"), (dict(alignments=dict(views={**VIEWS, "tap": 6})), "1..5"),
    (dict(views=0), "views"), (dict(alignments=dict(views={**VIEWS, "source": "vae"})), "source"),
    (dict(alignments=dict(views={**VIEWS, "criteria": {}})), "criteria")], ids=str)  # fmt: skip
def test_mistakes(changes, word):
    with pytest.raises(ConfigError, match=word):
        model(**changes)


def test_one_view_is_not_enough():
    own = model(views=1)
    with pytest.raises(ValueError, match="model.flow.views"):
        own.loss(synthetic_batch(own))
