"""Several noisings of each image, aligned with each other, on a decoupled transformer (DUPA), written out."""

import pytest
import torch
import torch.nn.functional as F
from support.backbones import joint_block, moved, norm

from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import BACKBONES, FLOW_LOSSES, FLOWS, MODELS, ConfigError, build
from ahpa.registry.contracts import Denoised, Step, TextCond
from ahpa.testing import check_backbone

DDT = dict(type="DDT", depth=5, encoder_depth=2, hidden_size=48, num_heads=4, num_classes=10)
DIT = {**DDT, "type": "DDTDiT"}
MMDIT = dict(type="DDTMMDiT", depth=4, encoder_depth=2, hidden_size=48, num_heads=4, text_dim=20)
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


@pytest.mark.parametrize("backbone", [{**MMDIT, "pooled_dim": 7}, {**MMDIT, "encoder_depth": 3}], ids=str)
def test_conformance(backbone):
    check_backbone(backbone)


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
    x, t, cond = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7]), torch.tensor([1, 10])
    cond = TextCond(torch.randn(2, 5, 20)) if backbone is MMDIT else cond
    for net in (plain, saving):
        net.train()(x, t, cond).pred["image"].square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_on_dit_it_is_the_same_split_of_the_steps_numbers():
    dit, ddt = moved(DIT), build(BACKBONES, {**DDT, "learn_sigma": True}, input_size=8, in_channels=4).eval()
    ddt.load_state_dict(dit.state_dict())
    x, label = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([1, 10])
    index = torch.tensor([3, 640])
    ours, theirs = dit(x, index / 1000, label, frozenset({2})), ddt(x, index.float(), label, frozenset({2}))
    assert ours.pred["image"].shape == (2, 8, 8, 8)
    torch.testing.assert_close(ours.pred["image"], theirs.pred["image"])
    torch.testing.assert_close(ours.taps[2].tokens, theirs.taps[2].tokens)


@pytest.mark.parametrize("pooled", [None, 7])
def test_the_decoupled_joint_pass_written_out(pooled):
    """With plain operations: in the decoder the image half has a modulation for each token, the text half the time's."""
    net = moved({**MMDIT, "pooled_dim": pooled})
    x, t = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.2, 0.7])
    cond = TextCond(torch.randn(2, 5, 20), None if pooled is None else torch.randn(2, pooled))
    out, w = net(x, t, cond, taps=frozenset({1, 2, 3, 4})), net.state_dict()
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    time = net.t_embedder(t)
    c = time if pooled is None else time + linear("y_embedder.mlp.2", F.silu(linear("y_embedder.mlp.0", cond.pooled)))
    whole = c[:, None].expand(-1, 16, -1)  # the encoder's, the same for each image token
    image, text = net.x_embedder(x["image"]) + net.pos_embed, linear("context_embedder", cond.tokens)
    own = whole
    for i in range(4):
        if i == 2:
            own = time[:, None] + image
            torch.testing.assert_close(out.taps[2].tokens, F.silu(own), rtol=1e-4, atol=1e-5)
            kernel = w["decoder_embedder.proj.weight"]
            image = (
                F.conv2d(x["image"], kernel, w["decoder_embedder.proj.bias"], stride=2).flatten(2).mT + net.pos_embed
            )
        text, image = joint_block(w, i, text, image, [F.silu(c)[:, None], F.silu(own)])
        if i != 1:
            torch.testing.assert_close(out.taps[i + 1].tokens, image, rtol=1e-4, atol=1e-5)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(own)).split(48, -1)
    wanted = net.unpatchify(linear("final_layer.linear", norm(image) * (1 + scale) + shift))
    torch.testing.assert_close(out.pred["image"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_the_hybrid_loss_of_views_is_the_mean_of_each_views(views):
    """Each view's own loss on its own step and noise, as a flow of one view has it."""
    flow = build(FLOWS, dict(type="DiscreteFlow", views=views))
    noisy = flow.sample({"image": torch.randn(4, 4, 8, 8)}, torch.Generator().manual_seed(0))
    assert noisy.views == views and len(set(noisy.t.tolist())) == 4 * views
    torch.testing.assert_close(noisy.t * 1000, (noisy.t * 1000).round())
    assert all(torch.equal(part, noisy.data["image"][:4]) for part in noisy.data["image"].chunk(views))
    pred, loss = torch.randn(4 * views, 8, 8, 8), build(FLOW_LOSSES, dict(type="HybridLoss"))
    whole = loss(Step(batch={}, flow=flow, noisy=noisy, out=Denoised({"image": pred}, {})))
    each = []
    for i in range(views):
        rows = slice(4 * i, 4 * i + 4)
        cut = lambda streams, rows=rows: {"image": streams["image"][rows]}  # noqa: E731
        own = noisy._replace(x=cut(noisy.x), t=noisy.t[rows], target=cut(noisy.target), data=cut(noisy.data),
                             noise=cut(noisy.noise), views=1)  # fmt: skip
        each.append(loss(Step(batch={}, flow=flow, noisy=own, out=Denoised({"image": pred[rows]}, {}))))
    assert set(whole) == {"loss_flow", "loss_flow_vlb"}
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]).mean())


def test_one_view_draws_what_it_drew_before():
    """The step first, then the noise: the numbers of a generator by themselves."""
    noisy = build(FLOWS, dict(type="DiscreteFlow")).sample(
        {"image": torch.zeros(5, 4, 2, 2)}, torch.Generator().manual_seed(7)
    )
    stream = torch.Generator().manual_seed(7)
    assert torch.equal(noisy.t, torch.randint(1000, (5,), generator=stream).float() / 1000)
    assert torch.equal(noisy.noise["image"], torch.randn(5, 4, 2, 2, generator=stream)) and noisy.views == 1
    for views in (0, 1.5, True):
        with pytest.raises(ConfigError, match="views"):
            build(FLOWS, dict(type="DiscreteFlow", views=views))


@pytest.mark.parametrize("backbone, changes", [
    (DIT, dict(flow=dict(type="DiscreteFlow", views=2), flow_loss=dict(type="HybridLoss"))),
    (MMDIT, dict(conditioner=dict(type="TextConditioner", encoder=dict(type="WordEncoder", width=20, length=6))))],
    ids=["DDTDiT", "DDTMMDiT"])  # fmt: skip
def test_views_on_the_other_transformers(backbone, changes):
    own = model(backbone=backbone, **changes)
    batch = {**synthetic_batch(own, batch=2), "noise_seed": 4}
    seen = []
    own.backbone.register_forward_hook(lambda module, args, out: seen.append(out))
    losses = own.loss(batch)
    a, b = (own.alignments["views"].projector.mlp(part) for part in seen[0].taps[2].tokens.chunk(2))
    wanted = 0.5 * (1 - F.cosine_similarity(a, b, dim=-1).mean())
    torch.testing.assert_close(losses["loss_views_cosine"], wanted, rtol=1e-4, atol=1e-6)
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.parameters() if p.requires_grad)


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
    with pytest.raises(ConfigError, match="model.alignments.views: .*model.flow.views"):
        model(views=1)
