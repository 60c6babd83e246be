"""What a user calls from Python checks classes, empty lists and wrong types, in one line each."""

import numpy as np
import pytest
import torch
from support.runs import call, train

from ahpa.cli import sample as command
from ahpa.engine.inference import load_generator
from ahpa.engine.pictures import make_grid
from ahpa.registry import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, iters=1, config="configs/sit-b.py")
    return folder


@pytest.fixture(scope="module")
def generator(run):
    return load_generator(run)


@pytest.fixture(scope="module")
def text_generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train(folder, iters=1, config="configs/mmdit.py")
    return load_generator(folder)


def refused(message, action, *arguments, **options):
    with pytest.raises(UserError, match=message) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)


WANTED = [
    ([], "the list is empty"),
    ((), "the list is empty"),
    (torch.tensor([], dtype=torch.long), "the list is empty"),
    ("fish", "must be a list"),
    (b"fish", "must be a list"),
    (3, "must be a list"),
    (None, "must be a list"),
    ({"fish": 1}, "must be a list"),
    ([10], "10 is not in 0..9"),
    ([0, -1], "-1 is not in 0..9"),
    ([1.5], "1.5 is not in 0..9"),
    ([1.0], "1.0 is not in 0..9"),
    ([True], "True is not in 0..9"),
    ([None], "None is not in 0..9"),
    ([[1]], r"\[1\] is not in 0..9"),
    ([float("nan")], "nan is not in 0..9"),
    ([2**70], "is not in 0..9"),
    (["fisch"], "did you mean 'fish'"),
    (torch.tensor([0.5]), "is not in 0..9"),
]


@pytest.mark.parametrize(("wanted", "message"), WANTED, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("name", ["sample", "latents"])
def test_classes(generator, name, wanted, message):
    refused(f"classes: .*{message}|{message}", getattr(generator, name), wanted, steps=1)


@pytest.mark.parametrize(
    "wanted", [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)], ids=repr
)
def test_classes_of_every_library(generator, wanted):
    assert torch.equal(generator.sample(wanted, steps=1), generator.sample([1, 2], steps=1))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [([], "the list is empty"), ("a fish", "must be a list"), ([3], "takes texts"), (5, "a list")],
)
def test_prompts(text_generator, wanted, message):
    refused(f"prompts: .*{message}", text_generator.sample, wanted, steps=1)


OPTIONS = [
    dict(steps=0),
    dict(steps=-1),
    dict(steps=2.5),
    dict(steps="2"),
    dict(steps=None),
    dict(steps=True),
    dict(batch=0),
    dict(batch=-4),
    dict(batch=1.5),
    dict(seed="x"),
    dict(seed=1.5),
    dict(seed=None),
    dict(first=-1),
    dict(first="0"),
    dict(cfg_scale="x"),
    dict(cfg_scale=-1),
    dict(cfg_scale=float("nan")),
    dict(cfg_scale=None),
    dict(cfg_interval=(0.9, 0.1)),
    dict(cfg_interval=0.5),
    dict(cfg_interval=(0, 1, 2)),
    dict(cfg_interval="01"),
    dict(cfg_channels=0),
    dict(cfg_channels=9),
    dict(cfg_channels=2.5),
    dict(precision="bf32"),
    dict(precision=16),
    dict(sampler="eular"),
    dict(sampler=5),
    dict(sampler="ddpm"),
    dict(guidance=5),
    dict(guidance="none"),
    dict(guidance=dict(scale=2)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_sampling(generator, options):
    (name,) = options
    refused(name, generator.sample, [1], **{"steps": 1, **options})


@pytest.mark.parametrize("count", [0, -1, 2.5, "2"])
def test_start_noise(generator, count):
    refused("count: must be a positive integer", generator.start_noise, count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(source=None), "source: must be a path"),
        (dict(source=5), "source: must be a path"),
        (dict(source=["a"]), "source: must be a path"),
        (dict(source=""), "checkpoint"),
        (dict(weights="emma"), "weights: must be 'ema' or 'model'"),
        (dict(weights=None), "weights: must be"),
        (dict(device="gpu"), "device: 'gpu' cannot be used"),
        (dict(device=None), "device: None cannot be used"),
        (dict(device="cuda:99"), "device: 'cuda:99' cannot be used"),
        (dict(tokenizer="bundled"), "tokenizer: must be a dict"),
        (dict(tokenizer=dict(source="bundled")), "tokenizer"),
        (dict(tokenizer=dict(type="KLAutoencodr")), "did you mean 'KLAutoencoder'"),
    ],
    ids=str,
)
def test_load_generator(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    refused(message, load_generator, **{"source": run, **options})


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 2, "images: must be uint8"),
        (torch.zeros(2, 3, 8, 8), 2, "images: must be uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 2, "images: must be uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0, "columns: must be a positive integer"),
    ],
)
def test_grids(images, columns, message):
    refused(message, make_grid, images, columns=columns)


@pytest.mark.parametrize("noise", [torch.zeros(2, 4, 8, 8), [0.0], {"image": [0.0]}, 5], ids=repr)
@pytest.mark.parametrize("name", ["sample", "latents"])
def test_noise_of_another_kind(generator, name, noise):
    with pytest.raises(ValueError, match="noise: must be {name of a stream: tensor}"):
        getattr(generator, name)([0, 1], noise=noise, steps=1)


def test_ctrl_c_in_a_command_is_one_line(run, monkeypatch):
    monkeypatch.setattr(command, "load_generator", interrupted)
    done = call("sample", run, "--num", "1")
    assert done.returncode == 130
    assert done.stderr.strip() == "stopped by Ctrl-C."


def interrupted(*_, **__):
    raise KeyboardInterrupt
