"""tools/sample.py: grids, folders and ADM archives from a checkpoint; no alignment part is built
or paid for. The generator by itself is tested in test_generator.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import sample, tool, train
from torch.utils.flop_counter import FlopCounterMode

from ahpa.engine.inference import load_generator
from ahpa.registry import ALIGNMENTS, PRIORS, PROJECTORS, ROUTERS, UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of AHPA and one of vanilla SiT, of the same backbone."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "ahpa", iters=3)
    train(folder / "vanilla", iters=3, config="configs/sit-b.py")
    return folder


def test_a_grid_png(runs, tmp_path):
    out = tmp_path / "grid.png"
    wanted = ("--num", 6, "--classes", 3, 7, "--steps", 2)
    done = sample(runs / "ahpa", *wanted, "--out", out)
    assert str(out) in done.stdout
    margin = 6 * len("moon") + 8  # the captions of the rows: moon and tree
    assert Image.open(out).size == (margin + 3 * 66 + 2, 2 * 66 + 2)  # a row for each class


def test_a_folder_of_pngs_and_an_adm_archive_hold_the_same(runs, tmp_path):
    common = (runs / "ahpa", "--num", 4, "--classes", 1, 2, "--steps", 2, "--seed", 5)
    sample(*common, "--out", tmp_path / "pngs", "--batch", 1)
    sample(*common, "--out", tmp_path / "all.npz", "--demo")
    with np.load(tmp_path / "all.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (4, 64, 64, 3) and images.dtype == np.uint8
    assert labels.tolist() == [1, 1, 2, 2]
    paths = sorted((tmp_path / "pngs").iterdir())
    assert len(paths) == 4 and paths[0].name == "000000_class0001.png"
    for path, image in zip(paths, images, strict=True):
        own = np.asarray(Image.open(path)).astype(int)
        assert np.abs(own - image).max() <= 1, "another batch size changes the rounding only"


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 4), ("heun", 7), ("sde", 4)])
def test_inference_costs_exactly_what_vanilla_costs(runs, sampler, calls, monkeypatch):
    """Equal parameters, equal multiply-accumulates, and no prior, router or projector is built."""

    def refuse(*args, **kwargs):
        raise AssertionError("an alignment part was asked for at inference")

    for registry in (PRIORS, ROUTERS, PROJECTORS, ALIGNMENTS):
        monkeypatch.setattr(registry, "get", refuse)
    cost = {}
    for name in ("ahpa", "vanilla"):
        generator = load_generator(runs / name)
        counted = []
        generator.backbone.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        with FlopCounterMode(display=False) as counter:
            images = generator.sample([0, 1], sampler=sampler, steps=4)
        parameters = sum(p.numel() for p in generator.backbone.parameters())
        cost[name] = (counter.get_total_flops(), parameters, len(counted))
        assert images.shape == (2, 3, 64, 64)
    assert cost["ahpa"] == cost["vanilla"] and cost["ahpa"][2] == calls


def test_a_sample_is_a_function_of_seed_and_number(runs):
    generator = load_generator(runs / "ahpa")
    options = dict(steps=3, sampler="sde", seed=4)
    all_at_once = generator.sample([1, 2, 3, 4], **options)
    one_by_one = generator.sample([1, 2, 3, 4], batch=1, **options)
    part = generator.sample([3, 4], first=2, **options)
    assert (all_at_once.int() - one_by_one.int()).abs().max() <= 1
    assert (all_at_once[2:].int() - part.int()).abs().max() <= 1
    other = generator.sample([1, 2, 3, 4], steps=3, sampler="sde", seed=5)
    assert not torch.equal(all_at_once, other)


def test_guidance_is_applied_and_only_in_its_interval(runs):
    generator = load_generator(runs / "ahpa")
    torch.manual_seed(0)
    with torch.no_grad():  # three steps of training leave the classes alike: separate them
        generator.backbone.y_embedder.embedding_table.weight.normal_(std=3)
        for p in generator.backbone.final_layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    none = generator.sample([1, 2], steps=4)
    assert not torch.equal(none, generator.sample([1, 2], steps=4, cfg_scale=5.0))
    outside = generator.sample([1, 2], steps=4, cfg_scale=5.0, cfg_interval=(0.9, 0.95))
    assert torch.equal(none, outside)


def test_ema_or_raw_weights(runs):
    ema, raw = (
        load_generator(runs / "ahpa", weights=kind).backbone.state_dict()
        for kind in ("ema", "model")
    )
    assert ema.keys() == raw.keys()
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)


def test_a_loaded_generator_is_frozen(runs):
    generator = load_generator(runs / "ahpa")
    for part in (generator.backbone, generator.tokenizer, generator.conditioner):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", 99), "0..9"),
        (("--out", "x.jpg"), ".npz"),
        (("--sampler", "eular"), "euler"),
        (("--num", 0), "--num"),
        (("--precision", "bf8"), "bf16"),
    ],
    ids=str,
)
def test_mistakes(runs, arguments, message):
    done = sample(runs / "ahpa", "--steps", 1, *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_mistake_of_the_real_command(runs):
    done = tool("sample", runs / "ahpa", "--steps", 1, "--classes", 99)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_generator(tmp_path / "nothing.pth")
