"""A text run from training to the samples of prompts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import WORDS, small_model
from support.runs import ROOT, final_state, sample, scalars, train
from test_configs import arguments

from ahpa.cli.train import training_config
from ahpa.data.images import ImageFolder
from ahpa.data.shapes import ShapesDataset
from ahpa.engine.inference import load_generator
from ahpa.engine.runner import check_conditions
from ahpa.registry import UserError
from ahpa.registry.contracts import Dataset

SMALLER = [
    "model.alignments.main.router.hidden_dim=16",
    "model.conditioner.prompts=['a red mushroom','a blue fish']",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "text"
    train(folder, iters=3, config="configs/ahpa_mmdit.py", options=SMALLER)
    return folder


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classes"
    train(folder, iters=1, config="configs/sit-b.py")
    return folder


def test_a_text_demo_trains_and_draws_its_prompts(run):
    assert len(scalars(run)) == 3
    assert {"loss/flow", "loss/main/cosine"} <= set(scalars(run)[0])
    grid = Image.open(next((run / "samples").iterdir()))
    assert grid.width > 2 * 66 + 6 * len("a red mushroom") and grid.height == 2 * 66 + 2
    state = final_state(run)
    assert any("joint_blocks" in name for name in state["ema"])
    assert not any("encoder" in name for name in state["model"])
    conditioner = state["meta"]["config"]["model"]["conditioner"]
    assert conditioner["encoder"]["type"] == "WordEncoder"


PROMPTS = ("a green tree on a light ground", "a blue fish")


def own_prompts(run, out):
    wanted = ("--num", 4, "--steps", 2, "--cfg-scale", 2, "--prompts", *PROMPTS)
    return sample(run, *wanted, "--out", out)


def test_a_grid_has_a_row_for_each_prompt(run, tmp_path):
    own_prompts(run, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").height == 2 * 66 + 2


def test_a_folder_has_the_prompts_beside_the_pictures(run, tmp_path):
    own_prompts(run, tmp_path / "pngs")
    names = sorted(path.name for path in (tmp_path / "pngs").iterdir())
    assert names == [
        "000000_prompt0000.png",
        "000001_prompt0000.png",
        "000002_prompt0001.png",
        "000003_prompt0001.png",
        "prompts.json",
    ]
    assert json.loads((tmp_path / "pngs" / "prompts.json").read_text()) == list(PROMPTS)


def test_an_archive_has_the_prompts_beside_the_numbers(run, tmp_path):
    own_prompts(run, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as archive:
        assert archive["arr_0"].shape == (4, 64, 64, 3)
        assert archive["arr_1"].tolist() == [0, 0, 1, 1]
        assert archive["prompts"].tolist() == list(PROMPTS)


def test_without_prompts_the_configs_own_are_drawn(run, tmp_path):
    sample(run, "--num", 2, "--steps", 1, "--out", tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as archive:
        assert archive["prompts"].tolist() == ["a red mushroom", "a blue fish"]


def test_classes_for_a_model_of_text_are_refused(run):
    done = sample(run, "--classes", 3, "--steps", 1, check=False)
    assert done.returncode == 2
    assert "--classes: this checkpoint takes prompts; give --prompts" in done.stderr
    both = sample(run, "--classes", 1, "--prompts", "a", check=False)
    assert both.returncode == 2 and "not allowed with" in both.stderr


def test_prompts_for_a_model_of_classes_are_refused(of_classes):
    done = sample(of_classes, "--prompts", "a cat", "--steps", 1, check=False)
    assert done.returncode == 2
    assert "--prompts: this checkpoint takes classes; give --classes" in done.stderr


def test_what_is_asked_for_decides_the_picture(run):
    generator = load_generator(run)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in generator.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    options = dict(steps=3, cfg_scale=3.0)
    one = generator.sample(["a red mushroom", "a blue fish"], **options)
    other = generator.sample(["a red mushroom", "a green tree"], **options)
    assert (one[0].int() - other[0].int()).abs().max() <= 1
    assert not torch.equal(one[1], other[1])


def test_data_names_cocos_folder_in_a_text_config():
    config = ROOT / "configs" / "ahpa_mmdit.py"
    cfg = training_config(arguments(config, data="some/coco"))
    assert cfg["train_dataloader"]["dataset"] == dict(
        type="CocoCaptions",
        images="some/coco/train2014",
        annotations="some/coco/annotations/captions_train2014.json",
    )


class OneItem(Dataset):
    """A data set of one image, with captions if it is built with them."""

    def __init__(self, *, resolution=64, captioned=False):
        self.captioned = captioned

    def __len__(self):
        return 1

    def __getitem__(self, key):
        raise NotImplementedError


OF_TEXT = dict(
    backbone=dict(type="MMDiT", depth=1, hidden_size=32, num_heads=2, text_dim=20),
    conditioner=WORDS,
)
OF_CLASSES = dict(backbone=dict(type="SiT", depth=1, hidden_size=32, num_heads=2, num_classes=10))


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        (OF_TEXT, object.__new__(ImageFolder), "ImageFolder has no captions"),
        (OF_TEXT, OneItem(), "OneItem has no captions"),
        (OF_CLASSES, OneItem(captioned=True), "captions only"),
    ],
    ids=["folder", "plain", "captions"],
)
def test_a_data_set_that_does_not_fit_the_condition_is_refused(model, dataset, message):
    with pytest.raises(UserError, match=message):
        check_conditions(small_model(**model), dataset)


@pytest.mark.parametrize("model", [OF_TEXT, OF_CLASSES], ids=["text", "classes"])
def test_the_drawn_images_fit_both(model):
    check_conditions(small_model(**model), ShapesDataset(resolution=64))


def test_captions_of_an_outside_data_set_fit():
    check_conditions(small_model(**OF_TEXT), OneItem(captioned=True))
