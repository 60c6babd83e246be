"""Priors made of priors: normalised maps against formulas written out; several priors as one."""

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import PRIORS, ROUTERS, TOKENIZERS, ConfigError, build
from ahpa.registry.contracts import Clean, CleanPrior, LevelSpec, Tap
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import ToyModel, check_prior

TAPS = dict(type="VAETaps")
VIT = dict(
    type="TimmEncoder",
    model="vit_tiny_patch16_224",
    weights="random",
    precision="fp32",
    options=dict(embed_dim=48, depth=2, num_heads=3),
)
LEVELS = ["map", "vector", "logits"]


class Given(CleanPrior):
    """A map, a vector and attention logits that the test knows."""

    def __init__(self):
        super().__init__(geometry=toy_geometry())
        stream = torch.Generator().manual_seed(0)
        self.features = {
            "map": 3 + 2 * torch.randn(2, 5, 3, 4, generator=stream),
            "vector": torch.ones(2, 5),
            "logits": torch.randn(2, 3, 12, 12, generator=stream),
        }
        self.levels = {
            "map": LevelSpec(5, 16),
            "vector": LevelSpec(5, 0),
            "logits": LevelSpec(3, 16, attention=True),
        }

    def from_clean(self, clean, levels):
        return self.features


@pytest.fixture(scope="module")
def tokenizer():
    return build(TOKENIZERS, dict(type="KLAutoencoder", source="bundled"))


@pytest.fixture(scope="module")
def geometry(tokenizer):
    return toy_geometry(tokenizer_levels=tokenizer.levels)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def changed(levels=LEVELS, **cfg):
    """What a wrapper makes of `Given`, beside the prior itself."""
    given = Given()
    prior = build(PRIORS, dict(prior=given, **cfg), geometry=given.geometry)
    return given.features, prior.from_clean(Clean({}), levels)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_spatial_norm_is_irepas_formula(gamma):
    given, found = changed(type="SpatialNorm", gamma=gamma)
    y = given["map"].flatten(2).mT  # [B, N, C], as iREPA has it
    wanted = (y - gamma * y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(found["map"].flatten(2).mT, wanted, rtol=1e-5, atol=1e-6)
    if gamma == 1:
        mean = found["map"].mean((2, 3))
        torch.testing.assert_close(mean, torch.zeros(2, 5), atol=1e-5, rtol=0)


def test_channel_norm_is_a_layer_norm():
    given, found = changed(type="ChannelNorm")
    wanted = torch.nn.functional.layer_norm(given["map"].permute(0, 2, 3, 1), (5,), eps=1e-6)
    torch.testing.assert_close(found["map"].permute(0, 2, 3, 1), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["SpatialNorm", "ChannelNorm", "Pooled"])
def test_vectors_and_attention_logits_stay_unchanged(kind):
    given, found = changed(type=kind)
    assert list(found) == LEVELS
    assert found["vector"] is given["vector"] and found["logits"] is given["logits"]
    assert list(changed(["vector"], type=kind)[1]) == ["vector"]


def test_pooled_averages_finer_maps_and_leaves_the_rest(tokenizer, geometry, images):
    bare = build(PRIORS, TAPS, geometry=geometry)
    pooled = build(PRIORS, dict(type="Pooled", stride=8, prior=TAPS), geometry=geometry)
    assert {level.stride for level in pooled.levels.values()} == {8}
    levels = list(bare.levels)
    clean = Clean({}, images, levels=tokenizer.encode(images, levels).levels)
    features = bare.from_clean(clean, levels)
    found = pooled.from_clean(clean, levels)
    assert len(found) == 15
    for name, level in bare.levels.items():
        k = 8 // level.stride
        x = features[name]
        wanted = x.view(2, level.channels, 8, k, 8, k).mean((3, 5)) if k > 1 else x
        assert found[name].dtype == x.dtype
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_pooled_refuses_a_stride_that_does_not_fit(geometry):
    message = "stride: must be a multiple of the 2 pixels of level 'down0.down', got 7"
    with pytest.raises(ConfigError, match=message):
        build(PRIORS, dict(type="Pooled", stride=7, prior=TAPS), geometry=geometry)


@pytest.mark.parametrize(
    "prior",
    [
        dict(type="SpatialNorm", prior=TAPS),
        dict(type="ChannelNorm", prior=VIT),
        dict(type="Pooled", prior=TAPS),
        dict(type="Pooled", stride=4, prior=VIT),
        dict(type="SpatialNorm", prior=dict(type="Pooled", prior=TAPS)),
        dict(type="SpatialNorm", prior=dict(type="ChannelNorm", prior=TAPS)),
        dict(type="SpatialNorm", prior=dict(VIT, attention=[2])),
        dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT)),
    ],
    ids=lambda p: p["type"],
)
def test_conformance(prior):
    check_prior(prior)


# ---- several priors as one ------------------------------------------------------------------


def test_a_combined_prior_names_the_levels_of_all(geometry):
    prior = build(
        PRIORS, dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT)), geometry=geometry
    )
    others = [name for name in prior.levels if not name.startswith("vae.")]
    assert others == ["vit.patch", "vit.cls"] and len(prior.levels) == 17
    assert prior.tokenizer_levels(["vit.patch", "vae.mid.res1"]) == ("mid.res1",)
    with pytest.raises(ConfigError, match="did you mean 'vit.patch'"):
        prior.tokenizer_levels(["vti.patch"])


def test_a_combined_prior_runs_only_the_parts_that_are_wanted(tokenizer, geometry):
    prior = build(
        PRIORS, dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT)), geometry=geometry
    )
    images = torch.stack([ShapesDataset()[i]["image"] for i in range(2)]).float() / 255
    clean = Clean({}, images, levels=tokenizer.encode(images, ["mid.res1"]).levels)
    assert list(prior.from_clean(clean, ["vae.mid.res1"])) == ["vae.mid.res1"]
    assert prior.parts["vit"].network is None, "the encoder was not needed"
    found = prior.from_clean(clean, ["vae.mid.res1", "vit.patch"])
    assert [tuple(x.shape) for x in found.values()] == [(2, 96, 8, 8), (2, 48, 4, 4)]


def test_a_combined_prior_feeds_one_router(tokenizer, geometry, images):
    prior = build(
        PRIORS, dict(type="CombinedPrior", priors=dict(vae=TAPS, vit=VIT)), geometry=geometry
    )
    groups = dict(a=["vae.mid.res1"], b=["vit.patch"])
    cfg = dict(type="StaticRouter", groups=groups)
    router = build(ROUTERS, cfg, levels=prior.levels, geometry=geometry)
    needed = prior.tokenizer_levels(router.used_levels)
    clean = Clean({}, images, levels=tokenizer.encode(images, needed).levels)
    features = prior.from_clean(clean, router.used_levels)
    assert router(features, torch.zeros(2)).shape == (2, 16, 96 + 48)


def test_the_engine_sees_the_needs_of_the_inner_priors(tokenizer, geometry):
    """Taps, tokenizer levels, weights and probes pass through wrappers and combinations."""
    inner = dict(vae=TAPS, vit=VIT, later=dict(type="BlockPrior", block=3))
    wrapped = dict(type="SpatialNorm", prior=dict(type="CombinedPrior", priors=inner))
    prior = build(PRIORS, wrapped, geometry=geometry)
    assert prior.taps == {Tap(3)}
    assert prior.tokenizer_levels(["vae.mid.attn", "later.block"]) == ("mid.attn",)
    prior.load()
    assert prior.prior.parts["vit"].network is not None
    model = ToyModel(geometry, tokenizer)
    patches, cls = prior.probe(model.backbone)()[0]
    assert patches.is_meta and patches.shape == (1, 16, 48) and cls.shape == (1, 48)
    with pytest.raises(ValueError, match="BlockPrior needs the noised batch"):
        prior.from_clean(Clean({}), ["later.block"])


def test_inner_priors_get_the_geometry(geometry):
    cfg = dict(type="Pooled", prior=dict(type="CombinedPrior", priors=dict(a=TAPS)))
    prior = build(PRIORS, cfg, geometry=geometry)
    assert prior.geometry is prior.prior.geometry is prior.prior.parts["a"].geometry is geometry


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (dict(type="SpatialNorm", prior=TAPS, eps=0), "eps"),
        (dict(type="SpatialNorm", prior=TAPS, gamma="x"), "gamma"),
        (dict(type="Pooled", prior=TAPS, stride=0), "stride: must be a positive integer, got 0"),
        (dict(type="SpatialNorm"), "prior"),
        (dict(type="ChannelNorm", prior=dict(type="VAETap")), "VAETaps"),
        (dict(type="ChannelNorm", prior=dict(TAPS, geometry=1)), "'geometry' follows from"),
        (dict(type="CombinedPrior", priors={}), "priors"),
        (dict(type="CombinedPrior", priors=dict(a=dict(type="VAETap"))), r"priors\.a"),
    ],
    ids=str,
)
def test_mistakes(geometry, wrong, word):
    with pytest.raises(ConfigError, match=word):
        build(PRIORS, wrong, geometry=geometry)
