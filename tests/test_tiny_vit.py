"""The bundled vision encoder: its files, that timm reads them, and what its tokens tell of pictures
that it never saw."""

import argparse
import importlib.util
import json
import socket
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import PRIORS, ConfigError, build, vision_files
from ahpa.registry.contracts import Clean
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import check_prior

FOLDER = vision_files.BUNDLED
CONFIG = json.loads((FOLDER / "config.json").read_text())
BUNDLED = dict(type="TimmEncoder", model="bundled", precision="fp32")
UNTRAINED = dict(
    BUNDLED,
    model=CONFIG["architecture"],
    weights="random",
    options=CONFIG["model_args"],
)
# Measured figures are in the model card; these floors leave room for the smaller sets of this test.
FLOORS = dict(cls=0.97, patch=0.9, shares=0.9)
MARGIN = 0.15  # at least so much above the untrained network


def built(cfg, resolution=64):
    return build(PRIORS, cfg, geometry=toy_geometry(resolution=resolution))


def features_of(prior, images):
    return prior.from_clean(Clean({}, images), ["patch", "cls"])


@pytest.fixture(scope="module")
def pictures():
    """600 pictures of this test's own seed: images [B, 3, 64, 64] in [0, 1], labels [B]."""
    data = ShapesDataset(length=600, seed=77_000)
    items = [data[i] for i in range(600)]
    images = torch.stack([item["image"] for item in items]).float() / 255
    return images, torch.tensor([item["label"] for item in items])


@pytest.fixture(scope="module")
def features(pictures):
    """{'trained' | 'untrained': {'patch': [B, 192, 4, 4], 'cls': [B, 192]}}"""
    priors = dict(trained=built(BUNDLED), untrained=built(UNTRAINED))
    return {name: features_of(prior, pictures[0]) for name, prior in priors.items()}


def test_files_are_small_and_hold_finite_float16():
    state = load_file(FOLDER / "model.safetensors")
    assert (FOLDER / "model.safetensors").stat().st_size <= 3e6
    assert (FOLDER / "README.md").exists()
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in state.values())


def test_timm_itself_reads_them_and_no_network_is_asked(pictures, monkeypatch):
    """Every weight has its place; images by mean 0.5 and std 0.5, at their own size; all frozen."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    images = pictures[0][:4]
    prior = built(BUNDLED)
    assert not list(prior.parameters()), "the constructor loads nothing"
    found = features_of(prior, images)
    own = timm.create_model(
        CONFIG["architecture"], num_classes=0, img_size=64, **CONFIG["model_args"]
    ).eval()
    own.load_state_dict(load_file(FOLDER / "model.safetensors"))
    with torch.no_grad():
        tokens = own.forward_features(2 * images - 1)
    patches = found["patch"].flatten(2).mT
    torch.testing.assert_close(patches, tokens[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert not prior.network.training
    assert not any(p.requires_grad for p in prior.network.parameters())


def test_it_fits_the_demo():
    """Class tokens of the width that the demo's class stream takes, patch tokens on its grid."""
    check_prior(BUNDLED)
    prior = built(BUNDLED)
    assert prior.levels["cls"].channels == prior.levels["patch"].channels == 192
    assert prior.input_side // prior.sizes.patch == 4


def test_positions_are_resampled():
    large = features_of(built(BUNDLED, 128), torch.rand(1, 3, 128, 128))
    assert large["patch"].shape == (1, 192, 8, 8)


@pytest.mark.parametrize("changes", [dict(weights="random"), dict(options=dict(depth=2))], ids=str)
def test_what_it_brings_is_not_given_again(changes):
    with pytest.raises(ConfigError, match="'bundled' brings its own weights and options"):
        built({**BUNDLED, **changes})


def nearest_neighbours(features, labels):
    """Accuracy of the nearest by cosine: the first 400 pictures are asked about the rest.

    features: [B, C].
    """
    unit = F.normalize(features, dim=-1)
    found = labels[:400][(unit[400:] @ unit[:400].T).argmax(1)]
    return (found == labels[400:]).float().mean().item()


@pytest.mark.parametrize("level", ["cls", "patch"])
def test_tokens_tell_the_class(features, pictures, level):
    found = {}
    for name, levels in features.items():
        x = levels[level]
        found[name] = nearest_neighbours(x.mean((2, 3)) if x.ndim == 4 else x, pictures[1])
    assert found["trained"] > max(FLOORS[level], found["untrained"] + MARGIN), found


def test_patch_tokens_tell_where_the_object_is(tool):
    """R^2 of a linear map, fitted by least squares on half of the pictures, to the object's share
    of each patch."""
    images, _, cells = tool.pictures(600, seed=78_000)
    shares = cells.unflatten(-1, (tool.CHANNELS, -1))[:, :, 3:-1].sum(2).mean(-1)  # [B, N]
    values = shares[:300].flatten()[:, None].double()
    found = {}
    for name, config in (("trained", BUNDLED), ("untrained", UNTRAINED)):
        x = features_of(built(config), images / 2 + 0.5)["patch"].flatten(2).mT
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1).double()
        weight = torch.linalg.lstsq(x[:300].flatten(0, 1), values).solution
        rest = x[300:] @ weight - shares[300:, :, None]
        found[name] = 1 - (rest.square().mean() / shares[300:].var()).item()
    assert found["trained"] > max(FLOORS["shares"], found["untrained"] + MARGIN), found


def test_a_constant_reaches_little(features):
    """The best constant vector's mean cosine: a target that a constant meets asks for nothing."""
    unit = {name: F.normalize(levels["patch"], dim=1) for name, levels in features.items()}
    reached = {name: x.mean((0, 2, 3)).norm().item() for name, x in unit.items()}
    assert reached["trained"] < min(0.12, reached["untrained"]), reached
    assert unit["trained"].mean(0).norm(dim=0).mean() < 0.35  # one constant for each place


def test_patch_tokens_are_standardised(features):
    x = features["trained"]["patch"]  # [B, C, h, w]
    assert x.mean((0, 2, 3)).abs().max() < 0.2
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.2


# ---- the tool that trained it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[1] / "tools" / "train_encoder.py"
    spec = importlib.util.spec_from_file_location("train_encoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_makes_this_network(tool):
    assert tool.CONFIG == CONFIG


def test_training_is_a_function_of_the_seed(tool, monkeypatch):
    monkeypatch.setattr(tool, "BATCH", 8)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        encoder = tool.new_encoder()
        tool.train(argparse.Namespace(steps=2, seed=seed), encoder)
        weights.append(torch.cat([p.detach().flatten() for p in encoder.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("patch", [0, 7, 15])
def test_what_is_told_about_a_patch_lies_in_its_place(tool, patch):
    """A patch's numbers: channel by channel the means of its 4 x 4 cells."""
    images, _, cells = tool.pictures(3, seed=1)
    told = cells.unflatten(-1, (tool.CHANNELS, 4, 4))  # [B, N, channel, row, column]
    top, left = 16 * (patch // 4), 16 * (patch % 4)
    pixels = images[:, :, top : top + 16, left : left + 16]
    torch.testing.assert_close(told[:, patch, :3], F.avg_pool2d(pixels, 4))


def test_hidden_squares_are_whole_patches(tool):
    images = torch.ones(400, 3, 64, 64)
    kept = tool.hide(images, torch.Generator().manual_seed(0))
    kept = kept.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4)
    assert torch.equal(kept.amin(-1), kept.amax(-1))
    assert 0.7 < kept.mean() < 0.8  # a share from 0 to 0.5 is hidden
