"""Per-channel statistics of latents: the published ones, measured ones, and where they are kept."""

import json

import pytest
import torch
from support.runs import ROOT, call
from test_autoencoder import bundled, tokenizer
from test_configs import arguments

from ahpa.analysis.latents import latent_moments, rounded
from ahpa.cli import latent_statistics
from ahpa.cli import train as cli
from ahpa.data.shapes import ShapesDataset
from ahpa.engine import config as configs
from ahpa.engine.assembly import build_model
from ahpa.engine.dryrun import dry_run
from ahpa.engine.weights import with_autoencoder
from ahpa.registry import ConfigError

DRAWN = ShapesDataset(length=12, resolution=64)
IMAGES = torch.stack([DRAWN[i]["image"] for i in range(12)]).float() / 255


def test_published_statistics():
    """EDM2's: z = (raw - mean) / std of Stable Diffusion's encoder."""
    vae = tokenizer(statistics="sd-imagenet", channels_last=False)
    with torch.no_grad():
        raw = bundled().encode(2 * IMAGES - 1).latent_dist
    mean = torch.tensor([5.81, 3.25, 0.12, -2.15]).view(1, 4, 1, 1)
    std = torch.tensor([4.17, 4.62, 3.71, 3.28]).view(1, 4, 1, 1)
    encoded = vae.encode(IMAGES)
    torch.testing.assert_close(encoded.mean, (raw.mean - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoded.std, raw.std / std, rtol=1e-5, atol=1e-6)


def test_what_the_usual_factor_leaves():
    """METHODS, section 0: with 0.18215 alone means 1.06 .59 .02 -.39, variance about .52."""
    mean = torch.tensor([5.81, 3.25, 0.12, -2.15]) * 0.18215
    std = torch.tensor([4.17, 4.62, 3.71, 3.28]) * 0.18215
    torch.testing.assert_close(mean, torch.tensor([1.06, 0.59, 0.02, -0.39]), atol=0.005, rtol=0)
    assert float(std.square().mean()) == pytest.approx(0.52, abs=0.01)


@pytest.mark.parametrize("option", ["scale", "shift", "mean", "std"])
def test_statistics_replace_the_other_factors(option):
    value = [1.0] * 4 if option in ("mean", "std") else 1.0
    with pytest.raises(ConfigError, match="statistics: replaces"):
        tokenizer(statistics="sd-imagenet", **{option: value})


def test_unknown_statistics_are_named():
    with pytest.raises(ConfigError, match="statistics: 'sd-imagnet' is unknown.*sd-imagenet"):
        tokenizer(statistics="sd-imagnet")


def test_statistics_of_another_encoder_are_told(caplog):
    """The bundled autoencoder has the factor 1.00005, SDXL's 0.13025; --vae may name such a one."""
    with caplog.at_level("WARNING", logger="ahpa"):
        tokenizer(source="stabilityai/sd-vae-ft-ema", statistics="sd-imagenet")
        assert not caplog.records
        tokenizer(source="stabilityai/sdxl-vae", statistics="sd-imagenet")
    assert "has the scaling factor 0.13025" in caplog.text


# ---- measuring ------------------------------------------------------------------------------


def test_moments_are_those_of_samples_written_out():
    """var = E[mean^2] + E[std^2] - E[mean]^2, over images and places, in one pass."""
    vae = tokenizer(scale=1.0, shift=0.0)
    found = latent_moments(vae, IMAGES.split(5), len(IMAGES))
    encoded = vae.encode(IMAGES)
    for channel in range(4):
        mean = encoded.mean[:, channel].double().flatten()
        std = encoded.std[:, channel].double().flatten()
        average = mean.mean()
        variance = ((mean - average) ** 2).mean() + (std**2).mean()
        assert float(found.mean[channel]) == pytest.approx(float(average), rel=1e-5, abs=1e-6)
        assert float(found.std[channel]) == pytest.approx(float(variance.sqrt()), rel=1e-5)
    draws = [encoded.sample(torch.Generator().manual_seed(i)) for i in range(200)]
    sampled = torch.stack(draws).double()
    torch.testing.assert_close(sampled.std((0, 1, 3, 4)), found.std, rtol=2e-3, atol=0)


def test_the_command_writes_a_base_config_that_gives_unit_latents(tmp_path, capsys):
    out = tmp_path / "latents.py"
    given = ["--vae", "bundled", "--resolution", "64", "--num", "40", "--batch", "16"]
    assert latent_statistics.main([*given, "--out", str(out)]) == 0
    assert "40 images" in capsys.readouterr().out
    config = tmp_path / "mine.py"
    config.write_text(
        f'_base_ = ["ahpa::ahpa_sit-b.py", {str(out)!r}]\n_base_.model.merge(_base_._latents)\n'
    )
    own = configs.load(config)["model"]["tokenizer"]
    vae = tokenizer(**{key: own[key] for key in ("mean", "std", "statistics")})
    images = ShapesDataset(resolution=64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:40]
    chosen = torch.stack([images[int(i)]["image"] for i in order]).float() / 255
    again = latent_moments(vae, [chosen], 40)
    torch.testing.assert_close(again.mean, torch.zeros(4).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(again.std, torch.ones(4).double(), rtol=1e-3, atol=0)


def test_a_config_names_autoencoder_and_data(tmp_path, capsys):
    """Raw latents are measured, whatever normalisation the config has; it is what --vae finds."""
    config = tmp_path / "mine.py"
    config.write_text(
        '_base_ = ["ahpa::ahpa_sit-b.py"]\n'
        "_base_.model.resolution = 64\n"
        '_base_.model.tokenizer = dict(type="KLAutoencoder", source="bundled", scale=3.0)\n'
        '_base_.train_dataloader.dataset = dict(type="ShapesDataset", length=20)\n'
    )
    assert latent_statistics.main(["--config", str(config), "--num", "8"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "8 images of 20, 64 px, KLAutoencoder" in printed[0]
    images = ShapesDataset(resolution=64, length=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:8]
    chosen = torch.stack([images[int(i)]["image"] for i in order]).float() / 255
    found = latent_moments(tokenizer(scale=1.0, shift=0.0), [chosen], 8)
    assert printed[1:3] == [f"mean {rounded(found.mean)}", f"std  {rounded(found.std)}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0"], "--num: must be a positive integer"),
        (["--batch", "-1"], "--batch"),
        (["--out", "x.json"], "--out: must be a .py file"),
        (["--data", "nowhere"], "no images at"),
        (["--config", "ahpa_sit-b"], "--resolution: is the config's"),
        (["--cfg-options", "model.resolution=64"], "--cfg-options: needs --config"),
        (["--vae", ""], "--vae: must not be empty"),
    ],
)
def test_mistakes_of_the_command(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert latent_statistics.main(["--vae", "bundled", "--resolution", "64", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_autoencoder_has_to_be_named(capsys):
    assert latent_statistics.main(["--num", "4"]) == 2
    assert "give --vae" in capsys.readouterr().err


# ---- keeping --------------------------------------------------------------------------------


def test_another_autoencoder_keeps_the_normalisation():
    own = dict(type="KLAutoencoder", source="a/b", statistics="sd-imagenet", precision="bf16")
    assert with_autoencoder(own, "elsewhere") == dict(
        type="KLAutoencoder", source="elsewhere", statistics="sd-imagenet"
    )
    plain = dict(type="KLAutoencoder", source="a/b", scale=None)
    assert with_autoencoder(plain, "x") == dict(type="KLAutoencoder", source="x")


def test_the_command_line_keeps_the_normalisation(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        '_base_ = ["ahpa::ahpa_sit-b.py"]\n'
        "_base_.model.tokenizer.update(statistics=None, mean=[0, 1, 2, 3], std=[4, 5, 6, 7])\n"
    )
    cfg = cli.training_config(arguments(config, vae="bundled"))
    own = cfg["model"]["tokenizer"]
    assert own["source"] == "bundled"
    assert (own["mean"], own["std"]) == ([0, 1, 2, 3], [4, 5, 6, 7])


SMALL = [
    "model.backbone.hidden_size=48",
    "model.backbone.num_heads=4",
    "train_dataloader.global_batch_size=4",
    "hooks.samples=None",
    "model.tokenizer.mean=[0.5,0.5,0.5,0.5]",
    "model.tokenizer.std=[2,2,2,2]",
]


def test_a_run_its_samples_and_its_published_folder_keep_the_statistics(tmp_path):
    """A checkpoint's and a folder's config say them; --vae of sample and publish keeps them."""
    work, out = tmp_path / "work", tmp_path / "shared"
    config = ROOT / "configs" / "sit-b.py"
    run = ["--demo", "--work-dir", work, "--max-iters", "1", "--cfg-options", *SMALL]
    assert call("train", config, *run).returncode in (0, None)
    assert call("publish", work, out, "--vae", "bundled").returncode in (0, None)
    described = json.loads((out / "config.json").read_text())["model"]["tokenizer"]
    assert described["mean"] == [0.5] * 4 and described["std"] == [2] * 4
    card = (out / "README.md").read_text()
    assert "mean=[0.5, 0.5, 0.5, 0.5], std=[2, 2, 2, 2]" in card
    pictures = []
    for number, source in enumerate((work, out)):
        file = tmp_path / f"{number}.png"
        given = ["--num", "2", "--steps", "2", "--vae", "bundled", "--out", file]
        assert call("sample", source, *given).returncode in (0, None)
        pictures.append(file.read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("std", "told"), [([1.0] * 4, False), ([0.01, 1, 1, 1], True), ([1, 1, 1, 50.0], True)]
)
def test_latents_of_another_scale_are_told_once(std, told, caplog):
    options = ["model.backbone.hidden_size=48", "model.backbone.num_heads=4"]
    path = ROOT / "configs" / "sit-b.py"
    cfg = cli.training_config(arguments(path, demo=True, cfg_options=options))
    cfg["model"]["tokenizer"] |= dict(mean=[0.0] * 4, std=std)
    model = build_model(cfg["model"])
    model.parts.load()
    with caplog.at_level("WARNING", logger="ahpa"):
        for _ in range(2):
            model.parts.encode({"image": IMAGES}, torch.Generator())
    found = [record for record in caplog.records if "standard deviation" in record.getMessage()]
    assert len(found) == told


def test_the_noise_of_a_dry_run_is_not_judged(caplog):
    options = ["model.backbone.hidden_size=48", "model.backbone.num_heads=4"]
    path = ROOT / "configs" / "sit-b.py"
    cfg = cli.training_config(arguments(path, demo=True, cfg_options=options))
    with caplog.at_level("WARNING", logger="ahpa"):
        dry_run(cfg)
    assert not [record for record in caplog.records if "deviation" in record.getMessage()]
