"""This package's own tests: ahpa's conformance checks, real pictures, errors.

The weights are in the folder $AHPA_TAEF2, by default ../shared/weights beside ahpa.
"""

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

from ahpa.registry import PRIORS, TOKENIZERS, ConfigError, UserError, build
from ahpa.registry.contracts import Clean
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import check_prior
from ahpa.testing.tokenizers import check_tokenizer

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[4] / "shared"
WEIGHTS = Path(os.environ.get("AHPA_TAEF2", SHARED / "weights"))
BUNDLED = dict(type="KLAutoencoder", source="bundled")


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
        opened = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
        arrays = np.stack([np.asarray(image) for image in opened])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def prior_beside(tokenizer, **options):
    """A prior of a model with this tokenizer."""
    geometry = toy_geometry(
        latent_channels=tokenizer.latent_channels, tokenizer_levels=tokenizer.levels
    )
    return build(PRIORS, {"type": "TAEF2Taps", **options}, geometry=geometry)


def test_conformance(config):
    check_tokenizer(config)
    check_prior(dict(type="TAEF2Taps"), tokenizer=config)
    check_prior(dict(type="TAEF2Taps", encoder=config["encoder"]), tokenizer=BUNDLED)


def test_real_pictures_come_back(config, pictures):
    """27.99 dB for these eight (27.18 for all 1,000), by the mean squared error of all: measured
    with another program, on the files' tensors with torch.nn.functional. A wrong skip, clamp or
    number of groups costs 2 dB or more."""
    vae = build(TOKENIZERS, config)
    latent = vae.encode(pictures).mean
    assert latent.shape == (8, 32, 32, 32)
    error = (vae.decode(latent) - pictures).square().mean()
    assert float(-10 * torch.log10(error)) == pytest.approx(27.992, abs=0.05)


def test_latents_are_standardised(config, pictures):
    latent = build(TOKENIZERS, config).encode(pictures).mean
    assert latent.mean((0, 2, 3)).abs().max() < 0.25
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 0.25
    raw = build(TOKENIZERS, config | dict(mean=0, std=1)).encode(pictures[:1]).mean
    mean = torch.tensor(ahpa_taef2.tokenizer.MEAN).view(1, -1, 1, 1)
    std = torch.tensor(ahpa_taef2.tokenizer.STD).view(1, -1, 1, 1)
    torch.testing.assert_close(latent[:1] * std + mean, raw, atol=1e-4, rtol=1e-4)


def test_the_posterior_is_a_point(config):
    encoded = build(TOKENIZERS, config).encode(noise(1, 3, 32, 32))
    assert not encoded.std.any()
    assert torch.equal(encoded.sample(torch.Generator().manual_seed(1)), encoded.mean)


def test_levels_are_the_modules_outputs(config):
    """Against forward hooks on the network: the blocks' outputs, by resolution."""
    vae = build(TOKENIZERS, config)
    vae.load()
    seen = []
    for module in list(vae.encoder)[:-1]:
        module.register_forward_hook(lambda m, i, output: seen.append((type(m).__name__, output)))
    levels = vae.encode(noise(1, 3, 64, 64), list(vae.levels)).levels
    assert list(levels) == list(vae.levels) and len(seen) == 14
    for (name, value), (kind, output) in zip(levels.items(), seen, strict=True):
        assert torch.equal(value, output) and (kind == "Block") == (".block" in name)
        assert value.shape[-1] == 64 // vae.levels[name].stride


def test_only_as_deep_as_asked(config):
    vae = build(TOKENIZERS, config)
    vae.load()
    count = []
    for module in vae.encoder:
        module.register_forward_hook(lambda *_: count.append(1))
    encoded = vae.encode(noise(1, 3, 32, 32), ["stage1.block2"], latent=False)
    assert encoded.mean is None and len(count) == 6  # conv_in, stage0.block0, stage1's four


@pytest.mark.parametrize("kind", ["shared", "own", "VAETaps"])
def test_own_pass_and_the_tokenizers_pass_agree(config, kind):
    """... and with ahpa's general VAETaps, which is another program."""
    images = noise(2, 3, 64, 64)
    tokenizer = build(TOKENIZERS, config)
    wanted = ("stage2.block1", "stage3.block2")
    by_hand = tokenizer.encode(images, wanted).levels
    options = dict(encoder=config["encoder"]) if kind == "own" else {}
    prior = prior_beside(tokenizer, type="VAETaps" if kind == "VAETaps" else "TAEF2Taps", **options)
    needed = prior.tokenizer_levels(wanted)
    assert needed == (() if kind == "own" else wanted)
    clean = Clean({}, images, levels=tokenizer.encode(images, needed).levels)
    found = prior.from_clean(clean, wanted)
    assert tuple(found) == wanted
    assert all(torch.equal(found[name], by_hand[name]) for name in wanted)
    for name in needed:  # taken as the tokenizer's pass yielded it, and not computed again
        assert found[name] is clean.levels[name]


def test_latents_without_levels_are_refused(config):
    prior = prior_beside(build(TOKENIZERS, config))
    with pytest.raises(UserError, match=r"latents and no images.*stage3\.block2"):
        prior.from_clean(Clean({"image": noise(1, 32, 4, 4)}), ["stage3.block2"])


def test_precision(config):
    """Autocast changes nothing; lower precision works, and stays near."""
    vae = build(TOKENIZERS, config)
    images = noise(1, 3, 64, 64)
    exact = vae.encode(images).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.encode(images).mean, exact)
    for fast in (build(TOKENIZERS, config | dict(precision="bf16")), vae.to(torch.bfloat16)):
        latent = fast.encode(images).mean
        assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
        assert latent.dtype == torch.float32
        assert (latent - exact).square().mean() < 0.01 * exact.square().mean()
        assert fast.decode(latent).isfinite().all()


def test_sizes_are_known_without_weights():
    vae = build(TOKENIZERS, dict(type="TAEF2", encoder="nowhere"))
    assert vae.levels["stage3.block2"][:2] == (64, 8) and vae.levels["conv_in"][:2] == (64, 1)
    assert not vae.state_dict()
    out = network.encoder().to("meta")(torch.zeros(2, 3, 64, 64, device="meta"))
    assert out.shape == (2, 32, 8, 8)
    assert network.decoder().to("meta")(out).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(std=0.0), "model.tokenizer.std: must be a finite number above 0, got 0.0"),
        (dict(std=[1.0] * 5), "std: must be 1 or 32 numbers, got 5"),
        (dict(mean="abc"), "mean: .*'abc'"),
        (dict(mean=float("nan")), "mean: must be a finite number.*, got nan"),
        (dict(encoder=3), "encoder: .* got 3"),
        (dict(precision="fp8"), "precision: 'fp8' is unknown"),
        (dict(decodr="x"), "no option 'decodr'; did you mean 'decoder'"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build(TOKENIZERS, dict(type="TAEF2", encoder="x") | options, where="model.tokenizer")


def test_missing_files_are_reported_before_training(config):
    with pytest.raises(UserError, match=r"option 'encoder': there is no file nowhere\.safetensors"):
        build(TOKENIZERS, dict(type="TAEF2", encoder="nowhere.safetensors")).load()
    with pytest.raises(UserError, match="option 'decoder': there is no file /nowhere"):
        build(TOKENIZERS, config | dict(decoder="/nowhere")).load()  # not at the first picture


def test_levels_need_no_decoder(config):
    only_levels = build(TOKENIZERS, config | dict(decoder=None))
    only_levels.load()
    with pytest.raises(UserError, match="set the option 'decoder'"):
        only_levels.decode(noise(1, 32, 2, 2))


def test_other_files_are_refused(config, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(config["encoder"]).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.safetensors is refused: it is damaged"):
        build(TOKENIZERS, config | dict(encoder=str(cut))).load()
    with pytest.raises(UserError, match="does not hold the weights of TAEF2's encoder"):
        build(TOKENIZERS, config | dict(encoder=config["decoder"])).load()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 60, 64), "multiples of 8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
    ],
    ids=["sides", "bytes"],
)
def test_wrong_images(config, images, message):
    with pytest.raises(ValueError, match=message):
        build(TOKENIZERS, config).encode(images)


def test_wrong_latents_and_levels(config):
    vae = build(TOKENIZERS, config)
    with pytest.raises(ValueError, match=r"must be \[B, 32, h, w\]"):
        vae.decode(noise(1, 4, 8, 8))
    with pytest.raises(ConfigError, match=r"'stage3\.block9' is unknown; did you mean"):
        vae.encode(noise(1, 3, 64, 64), ["stage3.block9"])


def test_another_tokenizer_needs_an_encoder():
    with pytest.raises(ConfigError, match="the tokenizer is not a TAEF2"):
        prior_beside(build(TOKENIZERS, BUNDLED))
