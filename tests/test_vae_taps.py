"""Levels of an encoder against diffusers' own, and AHPA's prior: from the tokenizer's own pass or
from another autoencoder."""

import copy

import pytest
import torch
from test_autoencoder import NAMES, bundled, network, pictures, saved
from test_autoencoder import tokenizer as tokenizer_of

from ahpa.registry import PRIORS, TOKENIZERS, ConfigError, UserError, build
from ahpa.registry.contracts import Clean, Encoded, LevelSpec, Tokenizer
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import check_prior
from ahpa.testing.tokenizers import check_tokenizer
from ahpa.tokenizers import sources

# Any scale: levels do not depend on it.
OWN = dict(type="KLAutoencoder", source="bundled", scale=0.5)
MODULES = [
    "conv_in",
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.1",
    "down_blocks.0.downsamplers.0",
    "down_blocks.1.resnets.0",
    "down_blocks.1.resnets.1",
    "down_blocks.1.downsamplers.0",
    "down_blocks.2.resnets.0",
    "down_blocks.2.resnets.1",
    "down_blocks.2.downsamplers.0",
    "down_blocks.3.resnets.0",
    "down_blocks.3.resnets.1",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
]
WANTED = ("down2.res0", "mid.res1")


class Plain(Tokenizer):
    """A third party's tokenizer that records what it is asked for."""

    latent_channels = 1
    downsample = 1

    def __init__(self, *, width: int = 5, levels: int = 2, precision: str = "fp32"):
        super().__init__()
        self.levels = {f"level{i}": LevelSpec(width, 1) for i in range(levels)}
        self.precision = precision
        self.asked = []

    def encode(self, images, levels=(), *, latent=True):
        self.asked.append((tuple(levels), latent))
        shape = (len(images), 5, *images.shape[2:])
        return Encoded(None, None, {name: images.new_zeros(shape) for name in levels})

    def decode(self, latent):
        return latent


@pytest.fixture(autouse=True)
def plain():
    TOKENIZERS.register_module(name="PlainOfTest", module=Plain, force=True)
    yield
    TOKENIZERS.module_dict.pop("PlainOfTest")


images = pytest.fixture(pictures, scope="module")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def taps(tokenizer, **options):
    """The prior beside this tokenizer."""
    geometry = toy_geometry(tokenizer_levels=tokenizer.levels)
    return build(PRIORS, dict(type="VAETaps", **options), geometry=geometry)


def clean_of(tokenizer, images, levels=()):
    """The clean batch with the levels that the tokenizer's own pass was asked for."""
    encoded = tokenizer.encode(images, levels)
    return Clean({"image": encoded.mean}, images, levels=encoded.levels)


def record_calls(autoencoder):
    """A list that grows by the name of each module of the encoder that runs."""
    autoencoder.load()
    ran = []
    for name, module in autoencoder.network.encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


# ---- the levels of an encoder ---------------------------------------------------------------


def with_hooks(model, images):
    """What diffusers itself computes: every level's output by a hook, and the posterior."""
    seen = {}
    modules = dict(model.encoder.named_modules())
    for name, module in zip(NAMES, MODULES, strict=True):
        modules[module].register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        return seen, model.encode(2 * images - 1).latent_dist


def test_levels_and_latent_are_those_of_diffusers(images):
    seen, posterior = with_hooks(bundled(), images)
    exact = tokenizer_of(scale=1.0, channels_last=False).encode(images, NAMES)
    assert list(exact.levels) == NAMES == list(tokenizer_of().levels)
    assert all(torch.equal(exact.levels[name], seen[name]) for name in NAMES)
    assert torch.equal(exact.mean, posterior.mean) and torch.equal(exact.std, posterior.std)


def test_channels_last_differs_by_the_order_of_summation_only(images):
    seen, posterior = with_hooks(bundled(), images)
    fast = tokenizer_of(scale=1.0).encode(images, NAMES)
    for name in NAMES:
        scale = seen[name].abs().max().item()
        torch.testing.assert_close(fast.levels[name], seen[name], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(fast.mean, posterior.mean, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(fast.std, posterior.std, rtol=1e-4, atol=0)


TWO_BLOCKS = [
    "conv_in",
    "down0.res0",
    "down0.down",
    "down1.res0",
    "mid.res0",
    "mid.attn",
    "mid.res1",
]
UNQUANTISED = dict(use_quant_conv=False, use_post_quant_conv=False, norm_num_groups=16)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (dict(block_out_channels=(32, 64), layers_per_block=1), TWO_BLOCKS),
        (dict(mid_block_add_attention=False), [n for n in NAMES if n != "mid.attn"]),
        (dict(latent_channels=6, **UNQUANTISED), NAMES),
    ],
    ids=["two blocks", "no attention", "no quant conv"],
)
def test_other_topologies(tmp_path, options, names, images):
    model = network(**options)
    vae = tokenizer_of(source=saved(tmp_path / "vae", model), scale=1.0, channels_last=False)
    encoded = vae.encode(images, names)
    assert list(vae.levels) == names == list(encoded.levels)
    for name, level in vae.levels.items():
        side = 64 // level.stride
        assert encoded.levels[name].shape == (len(images), level.channels, side, side)
    with torch.no_grad():
        assert torch.equal(encoded.mean, model.encode(2 * images - 1).latent_dist.mean)


def test_sampling_uses_the_generator_and_the_posterior(images):
    encoded = tokenizer_of().encode(images)
    noise = torch.randn(encoded.mean.shape, generator=torch.Generator().manual_seed(3))
    sampled = encoded.sample(torch.Generator().manual_seed(3))
    assert torch.equal(sampled, encoded.mean + encoded.std * noise)


@pytest.mark.parametrize("deepest", ["conv_in", "down2.res1", "down3.res0", "mid.attn"])
def test_computes_only_as_deep_as_needed(images, deepest):
    vae = tokenizer_of()
    vae.load()
    ran = []
    modules = dict(vae.network.encoder.named_modules())
    for name, module in zip([*NAMES, "conv_out"], [*MODULES, "conv_out"], strict=True):
        modules[module].register_forward_hook(lambda *_, name=name: ran.append(name))
    encoded = vae.encode(images, [deepest], latent=False)
    assert ran == NAMES[: NAMES.index(deepest) + 1]
    assert list(encoded.levels) == [deepest] and encoded.mean is None
    ran.clear()
    assert vae.encode(images, [deepest]).mean is not None
    assert ran == [*NAMES, "conv_out"]


def test_bf16_is_close(images):
    exact = tokenizer_of().encode(images, NAMES)
    fast = tokenizer_of(precision="bf16").encode(images, NAMES)
    for name in NAMES:
        assert fast.levels[name].dtype == torch.bfloat16
        a = exact.levels[name].flatten(1)
        b = fast.levels[name].float().flatten(1)
        assert torch.cosine_similarity(a, b).min() > 0.999
    assert fast.mean.dtype == fast.std.dtype == torch.float32


def test_known_hub_ids_need_no_network(monkeypatch):
    monkeypatch.setattr(sources, "hub_file", lambda *a: pytest.fail("asked the hub"))
    with torch.device("meta"):
        sd = tokenizer_of(source="stabilityai/sd-vae-ft-mse")
        sdxl = tokenizer_of(source="stabilityai/sdxl-vae")
    assert list(sd.levels) == NAMES and sd.levels == sdxl.levels
    assert sd.latent_channels == 4 and sd.downsample == 8
    by_resolution = [
        *[(128, 1)] * 3,
        *[(128, 2)] + [(256, 2)] * 2,
        *[(256, 4)] + [(512, 4)] * 2,
        *[(512, 8)] * 6,
    ]
    assert [(sd.levels[n].channels, sd.levels[n].stride) for n in NAMES] == by_resolution
    assert float(sd.factor) == pytest.approx(0.18215)
    assert float(sdxl.factor) == pytest.approx(0.13025)


def test_frozen_and_without_gradient(images):
    vae = tokenizer_of()
    assert not vae.state_dict() and not list(vae.parameters()), "the constructor loads nothing"
    encoded = vae.encode(images.clone().requires_grad_(), ["mid.res1"])
    assert not encoded.mean.requires_grad and not encoded.levels["mid.res1"].requires_grad
    assert not vae.decode(encoded.mean.requires_grad_()).requires_grad
    assert not vae.network.training
    assert not any(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 1, 16, 16), torch.float32, "3, H, W"),
        ((1, 3, 16, 16), torch.uint8, "floats"),
        ((1, 3, 16, 20), torch.float32, "multiples of 8"),
    ],
)
def test_images_that_do_not_fit(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_of().encode(torch.zeros(shape, dtype=dtype))


def test_latents_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\], got \[1, 3"):
        tokenizer_of().decode(torch.zeros(1, 3, 2, 2))


def test_unknown_levels():
    with pytest.raises(ConfigError, match=r"levels: 'down3.res2' is unknown.*down3\.res1"):
        tokenizer_of().encode(torch.zeros(1, 3, 16, 16), ["down3.res2"])


@pytest.mark.parametrize("first", ["load", "to"])
def test_it_moves_with_its_holder_and_keeps_its_factors(images, first):
    wanted = tokenizer_of(scale=0.18215).encode(images)
    holder = torch.nn.Module()
    holder.vae = tokenizer_of(scale=0.18215)
    if first == "load":
        holder.vae.load()
    holder.to(torch.bfloat16)
    encoded = holder.vae.encode(images)
    assert {p.dtype for p in holder.vae.network.parameters()} == {torch.bfloat16}
    assert holder.vae.factor.dtype == torch.float32
    assert float(holder.vae.factor) == pytest.approx(0.18215, rel=1e-6)
    assert torch.cosine_similarity(encoded.mean.flatten(), wanted.mean.flatten(), dim=0) > 0.999
    holder.to("meta")
    assert all(p.is_meta for p in holder.vae.network.parameters())
    assert holder.vae.factor.is_meta


def test_built_on_meta_it_is_whole(images):
    with torch.device("meta"):
        vae = tokenizer_of(scale=0.18215)
    assert vae.network is None, "the constructor must not load weights"
    vae.to("meta").to_empty(device="cpu")
    wanted = tokenizer_of(scale=0.18215).encode(images).mean
    assert torch.equal(copy.deepcopy(vae).encode(images).mean, wanted)


# ---- the prior ------------------------------------------------------------------------------


def test_contract():
    check_tokenizer(dict(type="KLAutoencoder", source="bundled"))
    check_prior(dict(type="VAETaps"))
    check_prior(dict(type="VAETaps", autoencoder=OWN, precision="fp32"))


def test_the_tokenizers_own_pass_is_shared(tokenizer, images):
    prior = taps(tokenizer)
    needed = prior.tokenizer_levels(["mid.res1", "down2.res0"])
    assert needed == WANTED, "in the order of the encoder"
    assert prior.levels == tokenizer.levels
    clean = clean_of(tokenizer, images, needed)
    features = prior.from_clean(clean, ["mid.res1", "down2.res0"])
    assert tuple(features) == WANTED
    assert all(features[name] is clean.levels[name] for name in WANTED)


def test_a_batch_without_levels_is_refused(tokenizer):
    """Latents that were stored come without levels, unless the engine computes them from images."""
    prior = taps(tokenizer)
    with pytest.raises(UserError, match=r"neither images nor the levels down1\.res0"):
        prior.from_clean(Clean({"image": torch.zeros(2, 4, 8, 8)}), ["down1.res0"])


def test_an_autoencoder_of_its_own_supervises_instead(tokenizer, images):
    prior = taps(tokenizer, autoencoder=dict(OWN, source=str(sources.BUNDLED)))
    assert prior.tokenizer_levels(WANTED) == ()
    assert {p.dtype for p in loaded(prior)} == {torch.bfloat16}
    clean = clean_of(tokenizer, images, WANTED)
    features = prior.from_clean(clean, WANTED)
    for name in WANTED:
        assert features[name].dtype == torch.bfloat16 and features[name] is not clean.levels[name]
        a = features[name].float().flatten()
        b = clean.levels[name].flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.999


def loaded(prior):
    prior.load()
    return list(prior.autoencoder.network.parameters())


def test_its_own_encoder_runs_only_as_deep_as_wanted(tokenizer, images):
    prior = taps(tokenizer, autoencoder=OWN)
    ran = record_calls(prior.autoencoder)
    prior.from_clean(Clean({}, images), ["down0.res1"])
    deeper = ("down_blocks.0.downsamplers", "down_blocks.1", "mid", "conv_out")
    assert "down_blocks.0.resnets.1" in ran
    assert not any(name.startswith(deeper) for name in ran)


@pytest.mark.parametrize(
    ("autoencoder", "given", "dtype"),
    [
        (OWN, {}, torch.bfloat16),
        (OWN, dict(precision="fp32"), torch.float32),
        (dict(OWN, precision="fp16"), dict(precision="fp32"), torch.float16),
    ],
    ids=["default", "given", "its own config wins"],
)
def test_precision(tokenizer, autoencoder, given, dtype):
    prior = taps(tokenizer, autoencoder=autoencoder, **given)
    assert {p.dtype for p in loaded(prior)} == {dtype}


def test_tokenizers_of_others(tokenizer, images):
    prior = taps(tokenizer, autoencoder=dict(type="PlainOfTest"))
    assert prior.autoencoder.precision == "bf16"
    assert list(prior.from_clean(Clean({}, images), ["level1"])) == ["level1"]
    assert prior.autoencoder.asked == [(("level1",), False)]
    shared = taps(build(TOKENIZERS, dict(type="PlainOfTest")))
    assert shared.tokenizer_levels(["level0"]) == ("level0",)
    assert shared.levels["level0"] == LevelSpec(5, 1)


@pytest.mark.parametrize("options", [dict(), dict(autoencoder=OWN)], ids=["shared", "own"])
def test_no_gradient_and_the_tokenizer_is_not_a_part_of_it(tokenizer, images, options):
    prior = taps(tokenizer, **options)
    prior.load()
    clean = clean_of(tokenizer, images.clone().requires_grad_(), WANTED)
    features = prior.from_clean(clean, WANTED)
    assert not any(value.requires_grad for value in features.values())
    assert not any(p.requires_grad for p in prior.parameters())
    assert tokenizer not in list(prior.modules())


def test_its_own_autoencoder_moves_with_it(tokenizer):
    tokenizer.load()
    prior = taps(tokenizer, autoencoder=OWN).to("meta")
    assert all(p.is_meta for p in loaded(prior))
    assert not any(p.is_meta for p in tokenizer.network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_autocast_does_not_reach_it(tokenizer, images, dtype):
    prior = taps(tokenizer, autoencoder=OWN, precision="fp32")

    def compute():
        features = prior.from_clean(Clean({}, images), WANTED)
        decoded = tokenizer.decode(torch.ones(1, 4, 2, 2))
        return [tokenizer.encode(images).mean, decoded, *features.values()]

    plain = compute()
    with torch.autocast("cpu", dtype=dtype):
        inside = compute()
        probe = torch.nn.functional.linear(images, torch.ones(1, 64))
        assert probe.dtype == dtype, "autocast is on"
    for a, b in zip(plain, inside, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_a_tokenizer_without_levels_is_refused():
    with pytest.raises(ConfigError, match="the tokenizer has no levels"):
        taps(Plain(levels=0))


def test_an_unknown_level_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"did you mean.*down2\.res0"):
        taps(tokenizer).tokenizer_levels(["down2.res9"])
    with pytest.raises(ConfigError, match=r"did you mean.*down2\.res0"):
        taps(tokenizer, autoencoder=OWN).from_clean(Clean({}), ["down2.res9"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(precision="fp8"), "fp16"),
        (dict(autoencoder=dict(type="KLAutoencoder", sorce="x")), "source"),
        (dict(autoencoder="bundled"), "a dict with a 'type'"),
        (dict(autoencoder=dict(type="KLEncoder")), "KLAutoencoder"),
        (dict(autoencoder=dict(type="PlainOfTest", levels=0)), "autoencoder Plain has no levels"),
    ],
    ids=str,
)
def test_mistakes(tokenizer, options, word):
    cfg = dict(type="VAETaps", **options)
    geometry = toy_geometry(tokenizer_levels=tokenizer.levels)
    with pytest.raises(ConfigError, match=word):
        build(PRIORS, cfg, where="model.priors.vae", geometry=geometry)
