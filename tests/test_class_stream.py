"""A class vector that diffuses beside the image: forward pass, layout, loss and sampling written out (REG)."""

import pytest
import torch

from ahpa.engine.dryrun import synthetic_batch
from ahpa.engine.inference import Generator
from ahpa.registry import BACKBONES, MODELS, ConfigError, build
from ahpa.testing import check_backbone

VIT = dict(type="TimmEncoder", model="vit_tiny_patch16_224", weights="random", precision="fp32",
           options=dict(embed_dim=16, depth=1, num_heads=2))  # fmt: skip
SIT = dict(type="ClassStreamSiT", depth=3, hidden_size=48, num_heads=4, num_classes=10, class_width=16)


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


def test_conformance():
    check_backbone(SIT)


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
