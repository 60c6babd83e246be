"""Levels of an encoder against diffusers' own, and AHPA's prior: from the tokenizer's pass or another autoencoder's."""

import copy

import pytest
import torch
from test_autoencoder import NAMES, bundled, network, pictures, saved
from test_autoencoder import tokenizer as tokenizer_of

from ahpa.priors import sources
from ahpa.registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build
from ahpa.registry.contracts import Autoencoder, Encoded, LevelSpec, Step
from ahpa.testing import check_autoencoder, check_prior

OWN = dict(type="KLAutoencoder", source="bundled", scale=0.5)  # any scale: levels do not depend on it
MODULES = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0", "down_blocks.1.resnets.1", "down_blocks.1.downsamplers.0", "down_blocks.2.resnets.0", "down_blocks.2.resnets.1", "down_blocks.2.downsamplers.0", "down_blocks.3.resnets.0", "down_blocks.3.resnets.1", "mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]  # fmt: skip
WANTED = ("down2.res0", "mid.res1")


class Plain(Autoencoder):
    """An autoencoder of a third party, without the option `precision`, that records what it is asked for."""

    latent_channels, downsample = 1, 1

    def __init__(self, *, width: int = 5, levels: int = 2):
        super().__init__()
        self.levels, self.asked = {f"level{i}": LevelSpec(width, 1) for i in range(levels)}, []

    def encode(self, images, taps=(), *, latent=True):
        self.asked.append((tuple(taps), latent))
        return Encoded(None, None, {name: images.new_zeros(len(images), 5, *images.shape[2:]) for name in taps})


@pytest.fixture(autouse=True)
def plain():
    AUTOENCODERS.register_module(name="PlainOfTest", module=Plain, force=True)
    yield
    AUTOENCODERS.module_dict.pop("PlainOfTest")


images = pytest.fixture(pictures, scope="module")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def bound(tokenizer, *levels, **options):
    prior = build(PRIORS, dict(type="VAETaps", **options))
    prior.bind(tokenizer=tokenizer, backbone=None)
    prior.request(levels)
    return prior


def count_calls(autoencoder):
    """A list that grows by the name of each module of the encoder that runs."""
    autoencoder.load()
    ran, encoder = [], autoencoder.held["vae"].encoder
    for name, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


# ---- the levels of an encoder ----


def with_hooks(model, images):
    """What diffusers itself computes: every level's output by a forward hook, and the posterior."""
    seen, modules = {}, dict(model.encoder.named_modules())
    for name, module in zip(NAMES, MODULES, strict=True):
        modules[module].register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        return seen, model.encode(2 * images - 1).latent_dist


def test_levels_and_latent_are_those_of_diffusers(images):
    seen, posterior = with_hooks(bundled(), images)
    exact = tokenizer_of(scale=1.0, channels_last=False).encode(images, NAMES)
    assert list(exact.taps) == NAMES == list(tokenizer_of().levels)
    assert all(torch.equal(exact.taps[name], seen[name]) for name in NAMES)
    assert torch.equal(exact.mean, posterior.mean) and torch.equal(exact.std, posterior.std)
    fast = tokenizer_of(scale=1.0).encode(images, NAMES)  # channels last: another order of summation
    for name in NAMES:
        scale = seen[name].abs().max().item()
        torch.testing.assert_close(fast.taps[name], seen[name], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(fast.mean, posterior.mean, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(fast.std, posterior.std, rtol=1e-4, atol=0)


@pytest.mark.parametrize("options, names", [
    (dict(block_out_channels=(32, 64), layers_per_block=1), ["conv_in", "down0.res0", "down0.down", "down1.res0", "mid.res0", "mid.attn", "mid.res1"]),
    (dict(mid_block_add_attention=False), [n for n in NAMES if n != "mid.attn"]),
    (dict(latent_channels=6, use_quant_conv=False, use_post_quant_conv=False, norm_num_groups=16), NAMES)],
    ids=["two blocks", "no attention", "no quant conv"])  # fmt: skip
def test_other_topologies(tmp_path, options, names, images):
    model = network(**options)
    vae = tokenizer_of(source=saved(tmp_path / "vae", model), scale=1.0, channels_last=False)
    encoded = vae.encode(images, names)
    assert list(vae.levels) == names == list(encoded.taps)
    for name, (channels, stride) in vae.levels.items():
        assert encoded.taps[name].shape == (len(images), channels, 64 // stride, 64 // stride)
    with torch.no_grad():
        assert torch.equal(encoded.mean, model.encode(2 * images - 1).latent_dist.mean)


def test_sampling_uses_the_generator_and_the_posterior(images):
    encoded = tokenizer_of().encode(images)
    noise = torch.randn(encoded.mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(encoded.sample(torch.Generator().manual_seed(3)), encoded.mean + encoded.std * noise)


@pytest.mark.parametrize("deepest", ["conv_in", "down2.res1", "down3.res0", "mid.attn"])
def test_computes_only_as_deep_as_needed(images, deepest):
    vae = tokenizer_of()
    vae.load()
    ran, modules = [], dict(vae.held["vae"].encoder.named_modules())
    for name, module in zip([*NAMES, "conv_out"], [*MODULES, "conv_out"], strict=True):
        modules[module].register_forward_hook(lambda *_, name=name: ran.append(name))
    encoded = vae.encode(images, [deepest], latent=False)
    assert ran == NAMES[: NAMES.index(deepest) + 1] and list(encoded.taps) == [deepest] and encoded.mean is None
    ran.clear()
    assert vae.encode(images, [deepest]).mean is not None and ran == [*NAMES, "conv_out"]


def test_bf16_is_close(images):
    exact, fast = tokenizer_of().encode(images, NAMES), tokenizer_of(precision="bf16").encode(images, NAMES)
    for name in NAMES:
        assert fast.taps[name].dtype == torch.bfloat16
        assert torch.cosine_similarity(exact.taps[name].flatten(1), fast.taps[name].float().flatten(1)).min() > 0.999
    assert fast.mean.dtype == fast.std.dtype == torch.float32


def test_known_hub_ids_need_no_network(monkeypatch):
    monkeypatch.setattr(sources, "hub_file", lambda *a: pytest.fail("asked the hub"))
    with torch.device("meta"):
        sd, sdxl = (tokenizer_of(source=f"stabilityai/{n}") for n in ("sd-vae-ft-mse", "sdxl-vae"))
    assert list(sd.levels) == NAMES and sd.levels == sdxl.levels and sd.latent_channels == 4 and sd.downsample == 8
    assert [tuple(sd.levels[n]) for n in NAMES] == [
        (128, 1), (128, 1), (128, 1), (128, 2), (256, 2), (256, 2), (256, 4), (512, 4), (512, 4), (512, 8),
        (512, 8), (512, 8), (512, 8), (512, 8), (512, 8)]  # fmt: skip
    assert float(sd.factor) == pytest.approx(0.18215) and float(sdxl.factor) == pytest.approx(0.13025)


def test_frozen_and_outside_of_state_and_parameters(images):
    vae = tokenizer_of()
    holder = torch.nn.Module()
    holder.vae = vae
    encoded = vae.encode(images.clone().requires_grad_(), ["mid.res1"])
    assert not encoded.mean.requires_grad and not encoded.taps["mid.res1"].requires_grad
    assert not vae.decode(encoded.mean.requires_grad_()).requires_grad
    holder.train()
    assert not vae.held["vae"].training
    assert not holder.state_dict() and not list(holder.parameters())


@pytest.mark.parametrize("shape, dtype, message", [
    ((1, 1, 16, 16), torch.float32, "3, H, W"), ((1, 3, 16, 16), torch.uint8, "floats"), ((1, 3, 16, 20), torch.float32, "multiples of 8")])  # fmt: skip
def test_images_that_do_not_fit(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_of().encode(torch.zeros(shape, dtype=dtype))
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\], got \[1, 3"):
        tokenizer_of().decode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ConfigError, match="down3.res1"):
        tokenizer_of().encode(torch.zeros(1, 3, 16, 16), ["down3.res2"])


@pytest.mark.parametrize("first", ["load", "to"])
def test_it_moves_with_its_model_and_keeps_its_factors(images, first):
    wanted, holder = tokenizer_of(scale=0.18215).encode(images), torch.nn.Module()
    holder.vae = tokenizer_of(scale=0.18215)
    if first == "load":
        holder.vae.load()
    holder.to(torch.bfloat16)
    encoded = holder.vae.encode(images)
    assert {p.dtype for p in holder.vae.held["vae"].parameters()} == {torch.bfloat16}
    assert holder.vae.factor.dtype == torch.float32 and float(holder.vae.factor) == pytest.approx(0.18215, rel=1e-6)
    assert torch.cosine_similarity(encoded.mean.flatten(), wanted.mean.flatten(), dim=0) > 0.999
    holder.to("meta")
    assert all(p.is_meta for p in holder.vae.held["vae"].parameters()) and holder.vae.factor.is_meta


def test_built_on_meta_it_is_whole(images):
    with torch.device("meta"):
        vae = tokenizer_of(scale=0.18215)
    assert "vae" not in getattr(vae, "held", {}), "the constructor must not load weights"
    vae.to("meta").to_empty(device="cpu")
    assert torch.equal(copy.deepcopy(vae).encode(images).mean, tokenizer_of(scale=0.18215).encode(images).mean)


# ---- the prior ----


def test_contract():
    check_autoencoder(dict(type="KLAutoencoder", source="bundled"))
    check_prior(dict(type="VAETaps"))
    check_prior(dict(type="VAETaps", autoencoder=OWN, precision="fp32"))


def test_shared_levels_are_the_tokenizers_own_pass(tokenizer, images):
    prior = bound(tokenizer, "mid.res1", "down2.res0")
    assert prior.shared_levels == WANTED, "in the order of the encoder"
    assert prior.spec(None) == tokenizer.levels
    step = Step(batch={}, images=images, encoded=tokenizer.encode(images, prior.shared_levels))
    features = prior(step)
    assert tuple(features) == WANTED and all(features[name] is step.encoded.taps[name] for name in WANTED)


def test_a_pass_that_did_not_yield_them_is_made_up_for(images):
    """Latents that were stored come without levels; with the images there, the tokenizer runs only as deep as needed."""
    tokenizer = tokenizer_of()
    wanted = tokenizer.encode(images, ["down1.res0"]).taps["down1.res0"]
    prior = bound(tokenizer, "down1.res0")
    ran = count_calls(tokenizer)
    stored = Encoded(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8), {})
    features = prior(Step(batch={}, images=images, encoded=stored))
    assert torch.equal(features["down1.res0"], wanted)
    assert "down_blocks.1.resnets.0" in ran and not any("down_blocks.1.resnets.1" in n or "mid" in n for n in ran)
    with pytest.raises(UserError, match=r"neither images nor the levels down1\.res0"):
        prior(Step(batch={}, images=None, encoded=stored))


def test_an_autoencoder_of_its_own_supervises_instead(tokenizer, images):
    prior = bound(tokenizer, *WANTED, autoencoder=dict(OWN, source=str(sources.BUNDLED)))
    assert prior.shared_levels == () and {p.dtype for p in loaded(prior)} == {torch.bfloat16}
    step = Step(batch={}, images=images, encoded=tokenizer.encode(images, WANTED))
    features = prior(step)
    for name in WANTED:
        assert features[name].dtype == torch.bfloat16 and features[name] is not step.encoded.taps[name]
        a, b = features[name].float().flatten(), step.encoded.taps[name].flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.999


def loaded(prior):
    prior.load()
    return list(prior.own.held["vae"].parameters())


def test_its_own_encoder_runs_only_as_deep_as_requested(tokenizer, images):
    prior = bound(tokenizer, "down0.res1", autoencoder=OWN)
    ran = count_calls(prior.own)
    prior(Step(batch={}, images=images))
    assert "down_blocks.0.resnets.1" in ran
    assert not any(name.startswith(("down_blocks.0.downsamplers", "down_blocks.1", "mid", "conv_out")) for name in ran)


@pytest.mark.parametrize("autoencoder, given, dtype", [
    (OWN, {}, torch.bfloat16), (OWN, dict(precision="fp32"), torch.float32),
    (dict(OWN, precision="fp16"), dict(precision="fp32"), torch.float16)], ids=["default", "given", "its own config wins"])  # fmt: skip
def test_precision(autoencoder, given, dtype):
    prior = build(PRIORS, dict(type="VAETaps", autoencoder=autoencoder, **given))
    assert {p.dtype for p in loaded(prior)} == {dtype}


def test_autoencoders_of_others_need_no_precision_option(tokenizer, images):
    prior = bound(tokenizer, "level1", autoencoder=dict(type="PlainOfTest"))
    assert list(prior(Step(batch={}, images=images))) == ["level1"] and prior.own.asked == [(("level1",), False)]
    shared = bound(build(AUTOENCODERS, dict(type="PlainOfTest")), "level0")
    assert shared.shared_levels == ("level0",) and shared.spec(None)["level0"] == LevelSpec(5, 1)


def test_outside_of_state_and_parameters_and_moved(tokenizer, images):
    for prior in (bound(tokenizer, *WANTED), bound(tokenizer, *WANTED, autoencoder=OWN)):
        prior.load()
        step = Step(batch={}, images=images.clone().requires_grad_(), encoded=tokenizer.encode(images, WANTED))
        features = prior(step)
        assert not any(value.requires_grad for value in features.values())
        assert not prior.state_dict() and not list(prior.parameters())
        assert tokenizer not in list(prior.modules()), "the tokenizer is the model's part, not the prior's"
    prior.to("meta")
    assert all(p.is_meta for p in loaded(prior))
    assert not any(p.is_meta for p in tokenizer.held["vae"].parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_autocast_does_not_reach_it(tokenizer, images, dtype):
    prior = bound(tokenizer, *WANTED, autoencoder=OWN, precision="fp32")
    step = Step(batch={}, images=images)
    compute = lambda: [tokenizer.encode(images).mean, tokenizer.decode(torch.ones(1, 4, 2, 2)), *prior(step).values()]  # noqa: E731
    plain = compute()
    with torch.autocast("cpu", dtype=dtype):
        inside = compute()
        assert torch.nn.functional.linear(images, torch.ones(1, 64)).dtype == dtype, "autocast is on"
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(plain, inside, strict=True))


def test_mistakes(tokenizer):
    prior = build(PRIORS, dict(type="VAETaps"))
    for wrong in (torch.nn.Identity(), None, Plain(levels=0)):
        with pytest.raises(ConfigError, match=r"tokenizer \w+ has no levels to share"):
            prior.bind(tokenizer=wrong, backbone=None)
    with pytest.raises(ConfigError, match=r"did you mean.*down2\.res0"):
        bound(tokenizer, "down2.res9")
    for options, word in ((dict(precision="fp8"), "fp16"), (dict(autoencoder=dict(type="KLAutoencoder", sorce="x")), "source"),
                          (dict(autoencoder="bundled"), "a dict with a 'type'"), (dict(autoencoder=dict(type="KLEncoder")), "KLAutoencoder"),
                          (dict(autoencoder=dict(type="PlainOfTest", levels=0)), "autoencoder Plain has no levels")):  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            build(PRIORS, dict(type="VAETaps", **options), where="model.priors.vae")
