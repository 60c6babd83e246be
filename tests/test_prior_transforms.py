"""Wrappers of priors: normalised maps against formulas written out, and several priors as one."""

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import AUTOENCODERS, MODELS, PRIORS, ROUTERS, ConfigError, build
from ahpa.registry.contracts import LevelSpec, Prior, Step
from ahpa.testing import check_prior

TAPS = dict(type="VAETaps")
VIT = dict(type="TimmEncoder", model="vit_tiny_patch16_224", weights="random", precision="fp32",
           options=dict(embed_dim=48, depth=2, num_heads=3))  # fmt: skip


class Given(Prior):
    """A map and a vector that the test knows."""

    def __init__(self):
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.features = {"map": 3 + 2 * torch.randn(2, 5, 3, 4, generator=stream), "vector": torch.ones(2, 5)}

    def spec(self, backbone):
        return {"map": LevelSpec(5, 16), "vector": LevelSpec(5, 0)}

    def forward(self, step):
        return self.features


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_spatial_norm_is_irepas_formula(gamma):
    given = Given()
    found = build(PRIORS, dict(type="SpatialNorm", gamma=gamma, prior=given))(Step(batch={}))
    y = given.features["map"].flatten(2).mT  # [B, N, C], as iREPA has it
    wanted = (y - gamma * y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(found["map"].flatten(2).mT, wanted, rtol=1e-5, atol=1e-6)
    assert found["vector"] is given.features["vector"]
    if gamma == 1:
        torch.testing.assert_close(found["map"].mean((2, 3)), torch.zeros(2, 5), atol=1e-5, rtol=0)


def test_channel_norm_is_a_layer_norm():
    given = Given()
    found = build(PRIORS, dict(type="ChannelNorm", prior=given))(Step(batch={}))["map"]
    wanted = torch.nn.functional.layer_norm(given.features["map"].permute(0, 2, 3, 1), (5,), eps=1e-6)
    torch.testing.assert_close(found.permute(0, 2, 3, 1), wanted, rtol=1e-5, atol=1e-6)


def test_pooled_averages_what_is_finer_and_leaves_the_rest():
    tokenizer = build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled"))
    bare, pooled = build(PRIORS, TAPS), build(PRIORS, dict(type="Pooled", stride=8, prior=TAPS))
    step = Step(batch={}, images=torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for prior in (bare, pooled):
        prior.bind(tokenizer=tokenizer, backbone=None)
        prior.request(prior.spec(None))
    assert {level.stride for level in pooled.spec(None).values()} == {8}
    features, found = bare(step), pooled(step)
    assert len(found) == 15
    for name, (channels, stride) in bare.spec(None).items():
        k, x = 8 // stride, features[name]
        want = x.float().view(2, channels, 8, k, 8, k).mean((3, 5)) if k > 1 else x
        assert found[name].dtype == x.dtype
        torch.testing.assert_close(found[name].float(), want.float(), rtol=2e-2, atol=2e-2)


def test_pooled_refuses_a_stride_that_does_not_fit():
    prior = build(PRIORS, dict(type="Pooled", stride=7, prior=TAPS))
    prior.bind(tokenizer=build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled")), backbone=None)
    with pytest.raises(ValueError, match="Pooled.stride: 7 is no multiple of the 2 pixels of level 'down0.down'"):
        prior.spec(None)


@pytest.mark.parametrize("prior", [
    dict(type="SpatialNorm", prior=TAPS), dict(type="ChannelNorm", prior=VIT), dict(type="Pooled", prior=TAPS), dict(type="Pooled", stride=4, prior=VIT),
    dict(type="SpatialNorm", prior=dict(type="Pooled", prior=TAPS)), dict(type="SpatialNorm", prior=dict(type="ChannelNorm", prior=TAPS)),
    dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT))], ids=lambda p: p["type"])  # fmt: skip
def test_conformance(prior):
    check_prior(prior)


def test_a_combined_prior_feeds_one_router_and_runs_only_what_is_asked_for():
    prior = build(PRIORS, dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT)))
    tokenizer = build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled"))
    prior.bind(tokenizer=tokenizer, backbone=None)
    spec = prior.spec(None)
    assert [name for name in spec if not name.startswith("vae.")] == ["vit.patch", "vit.cls"] and len(spec) == 17
    router = build(ROUTERS, dict(type="StaticRouter", groups=dict(a=["vae.mid.res1"], b=["vit.patch"])), spec=spec,
                   grid=(4, 4), content_dim=8)  # fmt: skip
    prior.request(router.used_levels)
    assert prior.shared_levels == ("mid.res1",)
    images = torch.stack([ShapesDataset()[i]["image"] for i in range(2)]).float() / 255
    step = Step(batch={}, images=images, encoded=tokenizer.encode(images, prior.shared_levels))
    features = prior(step)
    assert router(features, torch.zeros(2)).shape == (2, 16, 96 + 48)
    prior.request(["vae.mid.res1"])
    assert list(prior(step)) == ["vae.mid.res1"]
    with pytest.raises(ConfigError, match="'vit'"):
        prior.request(["vti.patch"])


def test_wrapped_taps_train_like_any_prior():
    model = build(MODELS, dict(
        type="AlignedDenoiser", resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"), ema=0.9,
        backbone=dict(type="SiT", depth=2, hidden_size=32, num_heads=2, num_classes=10),
        priors=dict(vae=dict(type="SpatialNorm", prior=TAPS)),
        alignments=dict(main=dict(tap=1, source="vae", router=dict(type="MLPRouter")))))  # fmt: skip
    assert len(model.shared_levels) == 8  # still of the tokenizer's own pass
    terms = model.loss({**synthetic_batch(model), "diagnose": True})
    assert terms["main/constant_cosine"] < 0.9 and terms["loss_main_cosine"].isfinite()


@pytest.mark.parametrize("wrong, word", [(dict(type="SpatialNorm", prior=TAPS, eps=0), "eps"), (dict(type="Pooled", prior=TAPS, stride=0), "stride"), (dict(type="SpatialNorm"), "prior"),
    (dict(type="ChannelNorm", prior=dict(type="VAETap")), "VAETaps"), (dict(type="CombinedPrior", priors={}), "priors"),
    (dict(type="CombinedPrior", priors=dict(a=dict(type="VAETap"))), "priors.a")], ids=str)  # fmt: skip
def test_mistakes(wrong, word):
    with pytest.raises(ConfigError, match=word):
        build(PRIORS, wrong)
