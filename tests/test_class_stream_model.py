"""A class vector that diffuses beside the image, as part of a model: loss and sampling written out
(REG)."""

import pytest
import torch
import torch.nn.functional as F
from support.models import VIT, WORDS, compute, generator_of, small_model

from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import ConfigError
from ahpa.registry.contracts import Tap

SIT = dict(
    type="ClassStreamSiT", depth=3, hidden_size=48, num_heads=4, num_classes=10, class_width=16
)
DIT = {**SIT, "type": "ClassStreamDiT"}
MMDIT = dict(
    type="ClassStreamMMDiT", depth=3, hidden_size=48, num_heads=4, text_dim=20, class_width=16
)
PLAIN = dict(type="SiT", depth=3, hidden_size=48, num_heads=4, num_classes=10)
MAIN = dict(
    tap=2,
    source="dino",
    weight=0.5,
    projector=dict(type="MLPProjector", hidden_dim=24),
    router=dict(type="StaticRouter", groups=dict(patch=["patch"]), prefix=["cls"]),
)


def model(**changes):
    cfg = dict(
        backbone=SIT,
        priors=dict(dino=VIT),
        streams=dict(cls=dict(source="dino", level="cls")),
        flow_loss=dict(type="FlowMatchingLoss", weights=dict(cls=0.03)),
        alignments=dict(main=MAIN),
    )
    return small_model(**{**cfg, **changes})


def test_both_streams_share_t_and_have_their_own_noise_and_the_loss_is_weighted():
    own = model()
    seen = compute(own, synthetic_batch(own, batch=3), seed=5)
    noised, out, features = seen.view.noised, seen.view.out, seen.features["dino"]
    data, noise = noised.data["cls"], noised.noise["cls"]
    assert torch.equal(data, features["cls"]) and noise.shape == (3, 16)
    s = noised.t[:, None]
    torch.testing.assert_close(noised.x["cls"], (1 - s) * data + s * noise)
    s = s[..., None, None]
    image = (1 - s) * noised.data["image"] + s * noised.noise["image"]
    torch.testing.assert_close(noised.x["image"], image)
    wanted = 0.03 * (out.pred["cls"] - (noise - data)).square().mean()
    torch.testing.assert_close(seen.weighted()["flow/cls"], wanted)
    maps = features["patch"].flatten(2).mT
    target = torch.cat([features["cls"][:, None], maps], dim=1)  # [B, 1+N, C]
    cosine = F.cosine_similarity(own.alignments["main"].projector(out.tokens(2)), target, dim=-1)
    assert cosine.shape == (3, 17)
    wanted = 0.5 * (1 - cosine.mean())
    torch.testing.assert_close(seen.weighted()["main/cosine"], wanted, rtol=1e-4, atol=1e-6)


def test_the_backbone_is_given_both_streams_and_one_time():
    own = model()
    given = []
    own.backbone.register_forward_hook(lambda module, args, out: given.append(args))
    seen = compute(own, synthetic_batch(own, batch=3))
    (x, t, label), noised = given[0], seen.view.noised
    assert x.keys() == {"image", "cls"} and all(torch.equal(x[k], noised.x[k]) for k in x)
    assert torch.equal(t, noised.t) and torch.equal(label, seen.view.cond.value)


def test_the_prior_of_a_stream_is_computed_once():
    own = model()
    calls = []
    prior = own.parts.priors["dino"]
    from_clean = prior.from_clean
    prior.from_clean = lambda *given: calls.append(given) or from_clean(*given)
    compute(own, synthetic_batch(own))
    assert len(calls) == 1 and set(calls[0][1]) == {"cls", "patch"}


def test_sampling_starts_from_noise_in_both_and_returns_the_image():
    own = model()
    seen = []
    network = own.parts.ema.backbone
    network.register_forward_hook(lambda module, args, out: seen.append(args[0]["cls"]))
    images = generator_of(own).sample([1, 2], sampler="sde", steps=3, cfg_scale=2.0)
    assert images.shape == (2, 3, 64, 64) and len(seen) == 3
    assert seen[0].shape == (4, 16) and torch.equal(seen[0][:2], seen[0][2:])
    assert not torch.equal(seen[0], seen[1])


def test_without_a_target_for_it_the_first_token_is_left_out():
    router = dict(type="MLPRouter")
    ahpa = dict(tap=2, source="vae", router=router, projector=dict(type="ConvProjector"))
    priors = dict(dino=VIT, vae=dict(type="VAETaps"))
    own = model(priors=priors, alignments=dict(ahpa=ahpa))
    seen = compute(own, synthetic_batch(own))
    assert seen.weighted()["ahpa/cosine"].isfinite()
    assert seen.view.out.prefix == 1 and seen.view.out.taps[Tap(2)].shape == (2, 17, 48)
    with pytest.raises(ConfigError, match="2 levels for the backbone's 1"):
        router = dict(type="StaticRouter", groups=dict(patch=["patch"]), prefix=["cls", "cls"])
        model(alignments=dict(main=dict(tap=2, source="dino", router=router)))


def stream(source, level):
    return dict(streams=dict(cls=dict(source=source, level=level)))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(streams={}), "model.streams"),
        (dict(backbone={**SIT, "class_width": 17}), "vector of 17"),
        (stream("dion", "cls"), "'dino'"),
        (stream("dino", "clas"), "'cls'"),
        (stream("dino", "patch"), "not a vector"),
        (dict(backbone=PLAIN, flow_loss=None), r"beside the image \(none\), got cls"),
        (dict(streams=dict(cls="dino")), r"must be dict\(source=PRIOR, level=LEVEL\)"),
        (dict(streams=dict(cls=dict(source="dino"))), r"must be dict\(source=PRIOR, level=LEVEL\)"),
    ],
    ids=str,
)
def test_mistakes(changes, word):
    with pytest.raises(ConfigError, match=word):
        model(**changes)


def test_the_class_token_is_guided_by_a_scale_of_its_own():
    own = model()
    generator = generator_of(own)
    generator.backbone = own.backbone.eval()  # the average still predicts zeros
    options = dict(sampler="sde", steps=3, cfg_scale=1.8)
    same, other = (generator.latents([1, 2], cls_cfg_scale=w, **options) for w in (1.8, 2.3))
    plain = generator.latents([1, 2], **options)
    for name in ("image", "cls"):
        assert torch.equal(plain[name], same[name])
        assert not torch.equal(plain[name], other[name])  # the image's blocks see the token


# ---- DiT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_model_on_discrete_steps_trains_and_samples(sampler):
    loss = dict(type="HybridLoss", weights=dict(cls=0.03))
    own = model(backbone=DIT, flow=dict(type="DiscreteFlow"), flow_loss=loss)
    seen = compute(own, synthetic_batch(own), seed=1)
    assert set(seen.weighted()) == {"flow", "flow/cls", "flow/vlb", "main/cosine"}
    options = dict(sampler=sampler, steps=3, cfg_scale=2.0, cfg_channels=3)
    images = generator_of(own).sample([1, 2], **options)
    assert images.shape == (2, 3, 64, 64)


# ---- MMDiT --------------------------------------------------------------------------------------


def test_a_model_of_text_trains_and_samples():
    own = model(backbone=MMDIT, conditioner=WORDS)
    seen = compute(own, synthetic_batch(own), seed=1)
    assert set(seen.weighted()) == {"flow", "flow/cls", "main/cosine"}
    images = generator_of(own).sample(["a red star"], sampler="sde", steps=2, cfg_scale=2.0)
    assert images.shape == (1, 3, 64, 64)
