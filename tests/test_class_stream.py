"""A class vector that diffuses beside the image: forward pass, layout, loss and sampling written out (REG)."""

import math

import pytest
import torch
from support.backbones import joint_block, moved, norm

from ahpa.engine.dryrun import synthetic_batch
from ahpa.engine.inference import Generator
from ahpa.registry import BACKBONES, FLOW_LOSSES, FLOWS, GUIDANCES, MODELS, SAMPLERS, ConfigError, build
from ahpa.registry.contracts import Denoised, Step, TextCond

VIT = dict(type="TimmEncoder", model="vit_tiny_patch16_224", weights="random", precision="fp32",
           options=dict(embed_dim=16, depth=1, num_heads=2))  # fmt: skip
SIT = dict(type="ClassStreamSiT", depth=3, hidden_size=48, num_heads=4, num_classes=10, class_width=16)
DIT = {**SIT, "type": "ClassStreamDiT"}
MMDIT = dict(type="ClassStreamMMDiT", depth=3, hidden_size=48, num_heads=4, text_dim=20, class_width=16)


def model(**changes):
    torch.manual_seed(0)
    cfg = dict(
        type="AlignedDenoiser", resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"), ema=0.9,
        backbone=SIT, priors=dict(dino=VIT), streams=dict(cls=dict(source="dino", level="cls")),
        flow_loss=dict(type="FlowMatchingLoss", weights=dict(cls=0.03)),
        alignments=dict(main=dict(tap=2, source="dino", weight=0.5, projector=dict(type="MLPProjector", hidden_dim=24),
                                  router=dict(type="StaticRouter", groups=dict(patch=["patch"]), prefix=["cls"]))))  # fmt: skip
    own = build(MODELS, {**cfg, **changes})
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return own


def test_the_published_layout():
    """Keys and shapes of the tiny model in the notes on published checkpoints (width 48, class width 16)."""
    state = build(BACKBONES, SIT, input_size=8, in_channels=4).state_dict()
    for name, shape in {"cls_projectors2.weight": (48, 16), "cls_projectors2.bias": (48,), "wg_norm.weight": (48,), "wg_norm.bias": (48,),
                        "final_layer.linear_cls.weight": (16, 48), "final_layer.linear_cls.bias": (16,), "final_layer.linear.weight": (16, 48),
                        "y_embedder.embedding_table.weight": (11, 48)}.items():  # fmt: skip
        assert tuple(state[name].shape) == shape, name


@pytest.mark.parametrize("sizes, millions", [((12, 768, 12), 132), ((24, 1024, 16), 460), ((28, 1152, 16), 677)])
def test_parameters_are_the_papers(sizes, millions):
    depth, width, heads = sizes
    with torch.device("meta"):
        net = build(
            BACKBONES,
            dict(type="ClassStreamSiT", depth=depth, hidden_size=width, num_heads=heads),
            input_size=32,
            in_channels=4,
        )
    assert abs(sum(p.numel() for p in net.parameters()) / 1e6 - millions) < 1


def test_the_forward_pass_written_out():
    net = model().backbone
    x = {"image": torch.randn(2, 4, 8, 8), "cls": torch.randn(2, 16)}
    t, label = torch.tensor([0.2, 0.7]), torch.tensor([1, 10])
    out = net(x, t, label, taps=frozenset({2}))
    first = torch.nn.functional.layer_norm(x["cls"] @ net.cls_projectors2.weight.T + net.cls_projectors2.bias, (48,),
                                           net.wg_norm.weight, net.wg_norm.bias)  # fmt: skip
    patches = net.x_embedder(x["image"]) + net.pos_embed
    h, c = torch.cat([first[:, None], patches], dim=1), net.t_embedder(t) + net.y_embedder(label)
    for block in net.blocks[:2]:
        h = block(h, c)
    assert out.taps[2].prefix == 1 and torch.allclose(out.taps[2].tokens, h, atol=1e-6)
    h = net.blocks[2](h, c)
    shift, scale = net.final_layer.adaLN_modulation(c).chunk(2, dim=-1)
    h = torch.nn.functional.layer_norm(h, (48,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(
        out.pred["cls"], h[:, 0] @ net.final_layer.linear_cls.weight.T + net.final_layer.linear_cls.bias
    )
    torch.testing.assert_close(out.pred["image"], net.unpatchify(net.final_layer.linear(h[:, 1:])))


def test_both_streams_share_t_and_have_their_own_noise_and_the_loss_is_weighted():
    own = model()
    batch = {**synthetic_batch(own, batch=3), "noise_seed": 5}
    seen = []
    own.backbone.register_forward_hook(lambda module, args, out: seen.append((args, out)))
    losses = own.loss(batch)
    (x, t), out = seen[0][0][:2], seen[0][1]
    step = own.begin(batch)
    data = own.encode(step)
    assert torch.equal(data["cls"], step.features["dino"]["cls"])
    noisy = own.flow.sample(data, step.generator)
    s = t[:, None]
    assert torch.equal(t, noisy.t) and torch.allclose(x["cls"], (1 - s) * data["cls"] + s * noisy.noise["cls"])
    wanted = 0.03 * (out.pred["cls"] - (noisy.noise["cls"] - data["cls"])).square().mean()
    torch.testing.assert_close(losses["loss_flow_cls"], wanted)
    features = step.features["dino"]
    target = torch.cat([features["cls"][:, None], features["patch"].flatten(2).mT], dim=1)  # [B, 1+N, C]
    pred = own.alignments["main"].projector(out.taps[2])
    cosine = torch.nn.functional.cosine_similarity(pred, target, dim=-1)
    assert cosine.shape == (3, 17)
    torch.testing.assert_close(losses["loss_main_cosine"], 0.5 * (1 - cosine.mean()), rtol=1e-4, atol=1e-6)


def test_sampling_starts_from_noise_in_both_and_returns_the_image():
    own = model()
    generator = Generator(tokenizer=own.tokenizer, backbone=own.ema, flow=own.flow, conditioner=own.conditioner)
    seen = []
    own.ema.register_forward_hook(lambda module, args, out: seen.append(args[0]["cls"]))
    images = generator.sample([1, 2], sampler="sde", steps=3, cfg_scale=2.0)
    assert images.shape == (2, 3, 64, 64) and len(seen) == 3
    assert seen[0].shape == (4, 16) and torch.equal(seen[0][:2], seen[0][2:]) and not torch.equal(seen[0], seen[1])


def test_without_a_target_for_it_the_first_token_is_left_out():
    ahpa = dict(tap=2, source="vae", router=dict(type="MLPRouter"), projector=dict(type="ConvProjector"))
    own = model(priors=dict(dino=VIT, vae=dict(type="VAETaps")), alignments=dict(ahpa=ahpa))
    terms = own.loss(synthetic_batch(own))
    assert terms["loss_ahpa_cosine"].isfinite()
    with pytest.raises(ConfigError, match="2 levels for the backbone's 1"):
        router = dict(type="StaticRouter", groups=dict(patch=["patch"]), prefix=["cls", "cls"])
        model(alignments=dict(main=dict(tap=2, source="dino", router=router)))


@pytest.mark.parametrize("changes, word", [
    (dict(streams={}), "model.streams"), (dict(backbone={**SIT, "class_width": 17}), "vector of 17"),
    (dict(streams=dict(cls=dict(source="dion", level="cls"))), "'dino'"), (dict(streams=dict(cls=dict(source="dino", level="clas"))), "'cls'"),
    (dict(streams=dict(cls=dict(source="dino", level="patch"))), "a map"),
    (dict(backbone=dict(type="SiT", depth=3, hidden_size=48, num_heads=4, num_classes=10)), "besides")], ids=str)  # fmt: skip
def test_mistakes(changes, word):
    with pytest.raises(ConfigError, match=word):
        model(**changes)


# ------------------------------------------------------------------------------------------------ DiT


def test_dit_is_sit_on_the_steps_numbers():
    """The same weights, given t * 1000 where SiT is given t; the class vector's prediction has no variance."""
    dit = moved(DIT)
    sit = build(BACKBONES, {**SIT, "learn_sigma": True}, input_size=8, in_channels=4).eval()
    sit.load_state_dict(dit.state_dict())
    x = {"image": torch.randn(2, 4, 8, 8), "cls": torch.randn(2, 16)}
    index, label = torch.tensor([37, 999]), torch.tensor([1, 10])
    ours, theirs = dit(x, index / 1000, label, frozenset({2})), sit(x, index.float(), label, frozenset({2}))
    assert ours.pred["image"].shape == (2, 8, 8, 8) and ours.pred["cls"].shape == (2, 16)
    for name, value in ours.pred.items():
        torch.testing.assert_close(value, theirs.pred[name])
    torch.testing.assert_close(ours.taps[2].tokens, theirs.taps[2].tokens)


def test_the_hybrid_loss_takes_the_plain_square_of_the_vector():
    flow = build(FLOWS, dict(type="DiscreteFlow"))
    data = {"image": torch.randn(5, 4, 4, 4), "cls": torch.randn(5, 16)}
    noisy = flow.sample(data, torch.Generator().manual_seed(0))
    pred = {"image": torch.randn(5, 8, 4, 4), "cls": torch.randn(5, 16)}
    step = Step(batch={}, flow=flow, noisy=noisy, out=Denoised(pred, {}))
    losses = build(FLOW_LOSSES, dict(type="HybridLoss", weights=dict(cls=0.03)))(step)
    assert set(losses) == {"loss_flow", "loss_flow_cls", "loss_flow_vlb"}
    by_hand = [sum((float(a) - float(b)) ** 2 for a, b in zip(p, e, strict=True)) / 16
               for p, e in zip(pred["cls"], noisy.noise["cls"], strict=True)]  # fmt: skip
    assert float(losses["loss_flow_cls"]) == pytest.approx(0.03 * sum(by_hand) / 5, rel=1e-5)
    image = pred["image"][:, :4] - noisy.noise["image"]
    torch.testing.assert_close(losses["loss_flow"], image.square().mean())
    alone = Step(batch={}, flow=flow, out=Denoised({"image": pred["image"]}, {}),
                 noisy=noisy._replace(target={"image": noisy.target["image"]}))  # fmt: skip
    assert torch.equal(build(FLOW_LOSSES, dict(type="HybridLoss"))(alone)["loss_flow_vlb"], losses["loss_flow_vlb"])


def chain():
    """-> abar at steps 0, 500 and 999 of betas 1e-4 .. 0.02, in plain numbers."""
    abar, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        abar.append(product)
    return abar[0], abar[500], abar[999]


def test_ddpm_steps_the_vector_with_beta_tilde_and_the_image_with_its_own_variance():
    low, mid, high = chain()
    x = {
        "image": torch.full((1, 4, 1, 1), 0.9, dtype=torch.float64),
        "cls": torch.full((1, 2), 0.9, dtype=torch.float64),
    }
    kick, seen = 1.5, []

    def model(state, t):
        seen.append((float(state["image"][0, 0, 0, 0]), float(state["cls"][0, 0])))
        ones = torch.ones_like(state["image"])
        return {"image": torch.cat([0.3 * state["image"], ones], 1), "cls": 0.3 * state["cls"]}  # v = 1: variance beta

    noise = lambda state: {name: torch.full_like(value, kick) for name, value in state.items()}  # noqa: E731
    path = build(FLOWS, dict(type="DiscreteFlow")).path
    out = SAMPLERS.get("ddpm")(model, x, steps=3, path=path, noise=noise)
    image = cls = 0.9
    for abar, before in ((high, mid), (mid, low), (low, 1.0)):
        beta = 1 - abar / before
        small = (1 - before) / (1 - abar) * beta  # DDPM section 3.2: beta_tilde
        assert seen.pop(0) == pytest.approx((image, cls), rel=1e-5)
        mean = lambda s, a=abar, b=beta: (s - b / math.sqrt(1 - a) * 0.3 * s) / math.sqrt(1 - b)  # noqa: E731  eq. 11
        last = before == 1.0
        image = mean(image) + (0 if last else math.sqrt(beta) * kick)
        cls = mean(cls) + (0 if last else math.sqrt(small) * kick)
    assert float(out["image"][0, 0, 0, 0]) == pytest.approx(image, rel=1e-5)
    assert float(out["cls"][0, 0]) == pytest.approx(cls, rel=1e-5)


def test_guided_channels_of_the_image_leave_the_vector_guided_whole():
    net = moved(DIT)
    x = {"image": torch.randn(2, 4, 8, 8), "cls": torch.randn(2, 16)}
    label, null = torch.tensor([1, 2]), torch.tensor([10, 10])
    of = lambda s, t, cond: net(s, t, cond).pred  # noqa: E731
    out = GUIDANCES.get("classifier-free")(of, label, null, 2.5, channels=3)(x, torch.tensor(0.5))
    own, bare = (of(x, torch.full((2,), 0.5), cond) for cond in (label, null))
    guided = {name: bare[name] + 2.5 * (own[name] - bare[name]) for name in own}
    torch.testing.assert_close(out["cls"], guided["cls"])
    torch.testing.assert_close(out["image"][:, :3], guided["image"][:, :3])
    torch.testing.assert_close(out["image"][:, 3:], own["image"][:, 3:])  # the fourth channel, and the variance


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_model_on_discrete_steps_trains_and_samples(sampler):
    loss = dict(type="HybridLoss", weights=dict(cls=0.03))
    own = model(backbone=DIT, flow=dict(type="DiscreteFlow"), flow_loss=loss)
    terms = own.loss({**synthetic_batch(own, batch=2), "noise_seed": 1})
    assert {"loss_flow", "loss_flow_cls", "loss_flow_vlb", "loss_main_cosine"} <= set(terms)
    generator = Generator(tokenizer=own.tokenizer, backbone=own.ema, flow=own.flow, conditioner=own.conditioner)
    images = generator.sample([1, 2], sampler=sampler, steps=3, cfg_scale=2.0, cfg_channels=3)
    assert images.shape == (2, 3, 64, 64)


# ------------------------------------------------------------------------------------------------ MMDiT


def test_the_joint_pass_written_out():
    """MMDiT's blocks over 5 text tokens and 1 + 16 image tokens: one softmax over all 22, written out with plain operations."""
    net = moved(MMDIT)
    x = {"image": torch.randn(2, 4, 8, 8), "cls": torch.randn(2, 16)}
    t, cond = torch.tensor([0.2, 0.7]), TextCond(torch.randn(2, 5, 20))
    out, w = net(x, t, cond, taps=frozenset({1, 2, 3})), net.state_dict()
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    token = linear("cls_projectors2", x["cls"])
    token = (token - token.mean(-1, keepdim=True)) / (token.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    token = token * w["wg_norm.weight"] + w["wg_norm.bias"]
    image = torch.cat([token[:, None], net.x_embedder(x["image"]) + net.pos_embed], 1)  # [B, 17, D]
    text, c = linear("context_embedder", cond.tokens), torch.nn.functional.silu(net.t_embedder(t))
    for i in range(3):
        text, image = joint_block(w, i, text, image, [c[:, None]] * 2)
        assert out.taps[i + 1].prefix == 1
        torch.testing.assert_close(out.taps[i + 1].tokens, image, rtol=1e-4, atol=1e-5)
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].split(48, -1)
    final = norm(image) * (1 + scale) + shift
    torch.testing.assert_close(out.pred["cls"], linear("final_layer.linear_cls", final[:, 0]), rtol=1e-4, atol=1e-5)
    wanted = net.unpatchify(linear("final_layer.linear", final[:, 1:]))
    torch.testing.assert_close(out.pred["image"], wanted, rtol=1e-4, atol=1e-5)


def test_text_starts_zero_or_as_pytorch_does():
    x = {"image": torch.randn(1, 4, 8, 8), "cls": torch.randn(1, 16)}
    for zero in (True, False):
        net = build(BACKBONES, {**MMDIT, "adaln_zero": zero}, input_size=8, in_channels=4)
        pred = net(x, torch.tensor([0.5]), TextCond(torch.randn(1, 5, 20))).pred
        assert all(bool((part == 0).all()) == zero for part in pred.values())


def test_a_model_of_text_trains_and_samples():
    words = dict(type="TextConditioner", encoder=dict(type="WordEncoder", width=20, length=6))
    own = model(backbone=MMDIT, conditioner=words)
    batch = synthetic_batch(own, batch=2)
    assert {"loss_flow", "loss_flow_cls", "loss_main_cosine"} <= set(own.loss({**batch, "noise_seed": 1}))
    generator = Generator(tokenizer=own.tokenizer, backbone=own.ema, flow=own.flow, conditioner=own.conditioner)
    assert generator.sample(["a red star"], sampler="sde", steps=2, cfg_scale=2.0).shape == (1, 3, 64, 64)
