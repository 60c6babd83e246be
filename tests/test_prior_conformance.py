"""Every registered tokenizer and prior keeps its contract, and the checks find what is broken."""

import pytest
import torch

from ahpa.registry import PRIORS, TOKENIZERS, build
from ahpa.registry.contracts import CleanPrior, Encoded, LevelSpec, Prior, Tokenizer
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import check_prior
from ahpa.testing.tokenizers import check_tokenizer

TAPS = dict(type="VAETaps")
BUNDLED = dict(type="TimmEncoder", model="bundled")
CLIP_SIZES = dict(embed_dim=32, width=96, layers=2, patch_size=16)
ALL_TOKENIZERS = dict(KLAutoencoder=dict(source="bundled"))
ALL_PRIORS = dict(
    VAETaps=dict(),
    TimmEncoder=dict(model="bundled", inner=True, attention=[2, 4]),
    OpenCLIPEncoder=dict(model="ViT-B-32", weights="random", sizes=CLIP_SIZES, inner=True),
    LatentPrior=dict(),
    TeacherPrior=dict(block=3),
    BlockPrior=dict(block=2),
    SpatialNorm=dict(prior=BUNDLED),
    ChannelNorm=dict(prior=TAPS),
    Pooled=dict(prior=TAPS),
    CombinedPrior=dict(priors=dict(vae=TAPS, vit=BUNDLED, later=dict(type="BlockPrior", block=1))),
)


def own(registry):
    """Names of ahpa's own components; plugins of other packages test themselves."""
    return {name for name in registry.names() if registry.get(name).__module__.startswith("ahpa.")}


def test_the_lists_are_complete():
    assert own(TOKENIZERS) == set(ALL_TOKENIZERS)
    assert own(PRIORS) == set(ALL_PRIORS)


@pytest.mark.parametrize("name", ALL_TOKENIZERS)
def test_tokenizers(name):
    check_tokenizer(dict(type=name, **ALL_TOKENIZERS[name]))


@pytest.mark.parametrize("name", ALL_PRIORS)
def test_priors(name):
    check_prior(dict(type=name, **ALL_PRIORS[name]))


def test_a_prior_may_be_given_as_an_object():
    check_prior(build(PRIORS, BUNDLED, geometry=toy_geometry(resolution=128)), resolution=128)


# ---- broken tokenizers ----------------------------------------------------------------------


class Sound(Tokenizer):
    """The smallest tokenizer that keeps the contract: 2 x 2 means and the colour itself."""

    latent_channels = 3
    downsample = 2

    def __init__(self, *, precision: str = "fp32"):
        super().__init__()
        self.levels = {"colour": LevelSpec(3, 1), "mean": LevelSpec(3, 2)}

    def encode(self, images, levels=(), *, latent=True):
        mean = torch.nn.functional.avg_pool2d(images, 2)
        found = {"colour": images, "mean": mean}
        kept = {name: found[name] for name in self.levels if name in levels}
        std = torch.zeros_like(mean)
        return Encoded(mean, std, kept) if latent else Encoded(None, None, kept)

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent, scale_factor=2).clamp(0, 1)


class WrongSize(Sound):
    downsample = 4


class NotClamped(Sound):
    def decode(self, latent):
        return super().decode(latent) + 1


class HalfMean(Sound):
    def encode(self, images, levels=(), *, latent=True):
        encoded = super().encode(images, levels, latent=latent)
        return encoded if encoded.mean is None else encoded._replace(mean=encoded.mean.half())


class OutOfOrder(Sound):
    def encode(self, images, levels=(), *, latent=True):
        encoded = super().encode(images, levels, latent=latent)
        return encoded._replace(levels=dict(reversed(encoded.levels.items())))


class LeavesOut(Sound):
    def encode(self, images, levels=(), *, latent=True):
        return super().encode(images, (), latent=latent)


class NotFinite(Sound):
    def encode(self, images, levels=(), *, latent=True):
        encoded = super().encode(images, levels, latent=latent)
        return encoded._replace(std=encoded.mean.log() * float("nan")) if latent else encoded


class Depends(Sound):
    def encode(self, images, levels=(), *, latent=True):
        return super().encode(images if latent else 1 - images, levels, latent=latent)


class WithoutPrecision(Sound):
    def __init__(self):
        super().__init__()


def registered(registry, kind):
    """A config of a class that is registered while a test runs."""
    registry.register_module(name=f"{kind.__name__}OfTest", module=kind, force=True)
    return dict(type=f"{kind.__name__}OfTest")


@pytest.fixture(autouse=True)
def forget():
    yield
    for registry in (TOKENIZERS, PRIORS):
        for name in [name for name in registry.module_dict if name.endswith("OfTest")]:
            registry.module_dict.pop(name)


def test_the_smallest_tokenizer_passes():
    check_tokenizer(registered(TOKENIZERS, Sound))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WrongSize, r"mean is \(2, 3, 32, 32\), expected \(2, 3, 16, 16\)"),
        (NotClamped, r"must lie in \[0, 1\]"),
        (HalfMean, "mean is torch.float16, expected float32"),
        (OutOfOrder, r"levels come in the order \['mean', 'colour'\]"),
        (LeavesOut, "the requested level 'colour' was left out"),
        (NotFinite, "std has values that are not finite"),
        (Depends, "level 'colour' changes with what else is asked for"),
    ],
)
def test_broken_tokenizers_are_found(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_tokenizer(registered(TOKENIZERS, kind))


def test_a_tokenizer_without_precision_is_found():
    with pytest.raises(ValueError, match="has no option 'precision'"):
        check_tokenizer(registered(TOKENIZERS, WithoutPrecision))


# ---- broken priors --------------------------------------------------------------------------


class Fine(CleanPrior):
    """The smallest prior that keeps the contract: the image itself and its mean colour."""

    def __init__(self, *, geometry):
        super().__init__(geometry=geometry)
        self.levels = {"image": LevelSpec(3, 1), "mean": LevelSpec(3, 0)}

    def from_clean(self, clean, levels):
        found = {"image": clean.images, "mean": clean.images.mean((2, 3))}
        return {name: x for name, x in found.items() if name in levels}


class NoLevels(Fine):
    def __init__(self, *, geometry):
        super().__init__(geometry=geometry)
        self.levels = {}


class PlainTuples(Fine):
    def __init__(self, *, geometry):
        super().__init__(geometry=geometry)
        self.levels = {"image": (3, 1), "mean": (3, 0)}


class Misshapen(Fine):
    def __init__(self, *, geometry):
        super().__init__(geometry=geometry)
        self.levels = {"image": LevelSpec(3, 2), "mean": LevelSpec(3, 0)}


class Forgets(Fine):
    def from_clean(self, clean, levels):
        return {}


class Reversed(Fine):
    def from_clean(self, clean, levels):
        return dict(reversed(super().from_clean(clean, levels).items()))


class Random(Fine):
    def from_clean(self, clean, levels):
        found = super().from_clean(clean, levels)
        return {name: x + torch.randn_like(x) for name, x in found.items()}


class Grows(Fine):
    def from_clean(self, clean, levels):
        self.levels["more"] = LevelSpec(3, 0)
        return super().from_clean(clean, levels)


class Overflows(Fine):
    def from_clean(self, clean, levels):
        found = super().from_clean(clean, levels)
        scale = torch.ones(3, 3) * 1e30
        return {name: x + (x @ scale if x.ndim == 2 else 0) for name, x in found.items()}


class UnknownLevel(Fine):
    def tokenizer_levels(self, levels):
        return ("deep.res9",)


class Attached(Prior):
    def __init__(self, *, geometry):
        super().__init__(geometry=geometry)
        inner = build(PRIORS, dict(type="BlockPrior", block=1), geometry=geometry)
        self.levels = inner.levels
        self.taps = inner.taps

    def forward(self, view, levels):
        return {"block": view.out.tokens(1).as_map()}


class BareTap(Fine):
    taps = frozenset({3})


def test_the_smallest_prior_passes():
    check_prior(registered(PRIORS, Fine))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoLevels, "must name at least one level"),
        (PlainTuples, r"must be LevelSpec, got \(3, 1\)"),
        (Misshapen, r"level 'image' is \(2, 3, 64, 64\), declared as \(2, 3, 32, 32\)"),
        (Forgets, "the requested level 'image' was left out"),
        (Reversed, r"levels come in the order \['mean', 'image'\]"),
        (Random, "level 'mean' changes with what else is asked for, or with the global generator"),
        (Grows, "running it changes the levels"),
        (Overflows, "under torch.float16: mean has values that are not finite"),
        (UnknownLevel, r"tokenizer_levels names \['deep.res9'\]"),
        (Attached, "level 'block' carries a gradient; detach it"),
        (BareTap, "must be Tap, got 3"),
    ],
)
def test_broken_priors_are_found(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_prior(registered(PRIORS, kind))
