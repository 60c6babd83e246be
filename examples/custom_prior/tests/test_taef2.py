"""This package's own tests: ahpa's conformance checks, real pictures, errors. Weights: $AHPA_TAEF2, else ../shared."""

import io
import os
import zipfile
from pathlib import Path

import ahpa_taef2
import numpy as np
import pytest
import torch
from ahpa_taef2 import network
from PIL import Image

from ahpa.registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build
from ahpa.registry.contracts import Encoded, Step
from ahpa.testing import check_autoencoder, check_prior

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[4] / "shared"
WEIGHTS = Path(os.environ.get("AHPA_TAEF2", SHARED / "weights"))


@pytest.fixture(scope="module")
def config():
    """TAEF2's config with real weights."""
    files = {part: WEIGHTS / f"taef2_{part}.safetensors" for part in ("encoder", "decoder")}
    if not all(file.exists() for file in files.values()):
        pytest.skip(f"TAEF2's weights are not in {WEIGHTS}; set AHPA_TAEF2")
    return dict(type="TAEF2", **{part: str(file) for part, file in files.items()})


@pytest.fixture(scope="module")
def pictures():
    """Eight real images [8, 3, 256, 256] in [0, 1]."""
    path = SHARED / "data" / "imagenet256-sample.zip"
    if not path.exists():
        pytest.skip(f"no real pictures: {path} is not there")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[60::125]
        arrays = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_conformance(config):
    check_autoencoder(config)
    check_prior(dict(type="TAEF2Taps"), tokenizer=config)
    check_prior(dict(type="TAEF2Taps", encoder=config["encoder"]))  # the tokenizer is another one


def test_real_pictures_come_back(config, pictures):
    """27.99 dB for these eight (27.18 for all 1,000), by the mean squared error of all: measured with another program, on
    the files' tensors with torch.nn.functional. A wrong skip, clamp or number of groups costs 2 dB or more."""
    vae = build(AUTOENCODERS, config)
    latent = vae.encode(pictures).mean
    assert latent.shape == (8, 32, 32, 32)
    error = (vae.decode(latent) - pictures).square().mean()
    assert float(-10 * torch.log10(error)) == pytest.approx(27.992, abs=0.05)


def test_latents_are_standardised(config, pictures):
    latent = build(AUTOENCODERS, config).encode(pictures).mean
    assert latent.mean((0, 2, 3)).abs().max() < 0.25 and (latent.std((0, 2, 3)) - 1).abs().max() < 0.25
    raw = build(AUTOENCODERS, config | dict(mean=0, std=1)).encode(pictures[:1]).mean
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (ahpa_taef2.autoencoder.MEAN, ahpa_taef2.autoencoder.STD))
    torch.testing.assert_close(latent[:1] * std + mean, raw, atol=1e-4, rtol=1e-4)


def test_the_posterior_is_a_point(config):
    encoded = build(AUTOENCODERS, config).encode(noise(1, 3, 32, 32))
    assert not encoded.std.any() and torch.equal(encoded.sample(torch.Generator().manual_seed(1)), encoded.mean)


def test_levels_are_the_modules_outputs(config):
    """Against forward hooks on the network: the blocks' outputs, by resolution."""
    vae, seen = build(AUTOENCODERS, config), []
    for module in list(vae.part("encoder"))[:-1]:
        module.register_forward_hook(lambda module, inputs, output: seen.append((type(module).__name__, output)))
    taps = vae.encode(noise(1, 3, 64, 64), list(vae.levels)).taps
    assert list(taps) == list(vae.levels) and len(seen) == 14
    for (name, value), (kind, output) in zip(taps.items(), seen, strict=True):
        assert torch.equal(value, output) and (kind == "Block") == (".block" in name)
        assert value.shape[-1] == 64 // vae.levels[name].stride


def test_only_as_deep_as_asked(config):
    vae, count = build(AUTOENCODERS, config), []
    for module in vae.part("encoder"):
        module.register_forward_hook(lambda *_: count.append(1))
    encoded = vae.encode(noise(1, 3, 32, 32), ["stage1.block2"], latent=False)
    assert encoded.mean is None and len(count) == 6  # conv_in, stage0.block0, stage1's four


def test_own_pass_and_the_tokenizers_pass_agree(config):
    """... and with ahpa's general VAETaps, which is another program."""
    images, tokenizer = noise(2, 3, 64, 64), build(AUTOENCODERS, config)
    wanted, found = ("stage2.block1", "stage3.block2"), []
    own = dict(type="TAEF2Taps", encoder=config["encoder"])
    for cfg, shared in ((dict(type="TAEF2Taps"), wanted), (own, ()), (dict(type="VAETaps"), wanted)):
        prior = build(PRIORS, cfg)
        prior.bind(tokenizer=tokenizer, backbone=None)
        prior.request(wanted)
        assert tuple(prior.shared_levels) == shared
        step = Step(batch={}, images=images, encoded=tokenizer.encode(images, prior.shared_levels))
        found.append(prior(step))
        for name in shared:  # taken as the tokenizer's pass yielded it, and not computed again
            assert found[-1][name] is step.encoded.taps[name]
    for other in found[1:]:
        assert tuple(other) == wanted and all(torch.equal(other[name], found[0][name]) for name in wanted)


def test_latents_without_levels(config):
    """Training on stored latents: levels come from the images if there are any."""
    tokenizer, prior = build(AUTOENCODERS, config), build(PRIORS, dict(type="TAEF2Taps"))
    prior.bind(tokenizer=tokenizer, backbone=None)
    prior.request(["stage3.block2"])
    stored = Encoded(noise(1, 32, 4, 4), noise(1, 32, 4, 4), {})
    assert prior(Step(batch={}, images=noise(1, 3, 32, 32), encoded=stored))["stage3.block2"].shape == (1, 64, 4, 4)
    with pytest.raises(UserError, match=r"latents and no images.*stage3\.block2"):
        prior(Step(batch={}, encoded=stored))


def test_precision(config):
    """Autocast changes nothing; cast weights work, and stay near."""
    vae, images = build(AUTOENCODERS, config), noise(1, 3, 64, 64)
    exact = vae.encode(images).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.encode(images).mean, exact)
    for moved in (vae.to(torch.bfloat16), build(AUTOENCODERS, config).to(torch.bfloat16)):  # after and before loading
        latent = moved.encode(images).mean
        assert latent.dtype == torch.float32 and (latent - exact).square().mean() < 0.01 * exact.square().mean()
        assert moved.decode(latent).isfinite().all()


def test_sizes_are_known_without_weights():
    with torch.device("meta"):
        vae = build(AUTOENCODERS, dict(type="TAEF2", encoder="nowhere"))
    assert vae.levels["stage3.block2"] == (64, 8) and vae.levels["conv_in"] == (64, 1) and not vae.state_dict()
    out = network.encoder().to("meta")(torch.zeros(2, 3, 64, 64, device="meta"))
    assert out.shape == (2, 32, 8, 8) and network.decoder().to("meta")(out).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("options, message", [
    (dict(std=0.0), "model.tokenizer: std: expected finite numbers above 0, got 0.0"),
    (dict(std=[1.0] * 5), "std: expected 1 or 32 numbers, got 5"), (dict(mean="abc"), "mean: .*'abc'"),
    (dict(mean=float("nan")), "mean: expected finite numbers, got nan"), (dict(encoder=3), "encoder: .* got 3"),
    (dict(decodr="x"), "no option 'decodr'; did you mean 'decoder'"),
])  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build(AUTOENCODERS, dict(type="TAEF2", encoder="x") | options, where="model.tokenizer")


def test_missing_weights_are_told_before_training(config, tmp_path):
    with pytest.raises(UserError, match=r"no encoder at /.*nowhere\.safetensors; set the option 'encoder'"):
        build(AUTOENCODERS, dict(type="TAEF2", encoder="nowhere.safetensors")).load()
    with pytest.raises(UserError, match="no decoder at /nowhere"):  # not at the first picture, hours later
        build(AUTOENCODERS, config | dict(decoder="/nowhere")).load()
    only_levels = build(AUTOENCODERS, config | dict(decoder=None))
    only_levels.load()
    with pytest.raises(UserError, match="the decoder is needed here and no path was given"):
        only_levels.decode(noise(1, 32, 2, 2))
    (tmp_path / "cut.safetensors").write_bytes(Path(config["encoder"]).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.safetensors is no safetensors file"):
        build(AUTOENCODERS, config | dict(encoder=str(tmp_path / "cut.safetensors"))).load()
    with pytest.raises(UserError, match="does not hold the weights of TAEF2's encoder"):
        build(AUTOENCODERS, config | dict(encoder=config["decoder"])).load()


def test_wrong_input(config):
    vae, prior = build(AUTOENCODERS, config), build(PRIORS, dict(type="TAEF2Taps"))
    for images, message in ((noise(1, 3, 60, 64), "multiples of 8"), ((noise(1, 3, 64, 64) * 255).byte(), "uint8")):
        with pytest.raises(ValueError, match=message):
            vae.encode(images)
    with pytest.raises(ValueError, match=r"expected \[B, 32, h, w\]"):
        vae.decode(noise(1, 4, 8, 8))
    with pytest.raises(ConfigError, match=r"TAEF2 has no level 'stage3\.block9'; did you mean"):
        vae.encode(noise(1, 3, 64, 64), ["stage3.block9"])
    with pytest.raises(ConfigError, match=r"no level 'stage3\.block9'"):
        prior.request(["stage3.block9"])
    bundled = build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled"))
    with pytest.raises(ConfigError, match="the tokenizer is a KLAutoencoder"):
        prior.bind(tokenizer=bundled, backbone=None)
