"""Names of classes travel with a run: config.json, checkpoints, the published folder, the diffusers
folder and back, `--classes fish house`, and the captions of samples."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import ROOT, call, environment, sample, train

from ahpa.engine import checkpoint
from ahpa.engine.inference import load_generator
from ahpa.engine.pictures import make_grid
from ahpa.interop.pipeline_folder import read_pipeline, write_pipeline
from ahpa.interop.publish import publish
from ahpa.registry import UserError

NAMES = ["10", "ape", "cat, tabby", "dög"]  # as sorted(), which numbers them


def small_options(run, data):
    return ["--demo", "--data", data, "--work-dir", run, "--max-iters", 2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A run of the drawn set, whose classes are a star, a heart and so on."""
    run = tmp_path_factory.mktemp("shapes") / "run"
    train(run, iters=2, config="configs/sit-b.py")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of class folders with odd names."""
    from support.runs import TINY

    base = tmp_path_factory.mktemp("named")
    for number, name in enumerate(NAMES):
        (base / "data" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((64, 64, 3), 60 * number + 9 * i, np.uint8)
            Image.fromarray(pixels).save(base / "data" / name / f"{i}.png")
    options = [*small_options(base / "run", base / "data"), "--cfg-options", *TINY]
    done = call("train", ROOT / "configs" / "sit-b.py", *options)
    assert done.returncode == 0, done.stderr
    return base / "run"


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("published") / "folder"
    publish(run, target)
    return target


@pytest.fixture(scope="module")
def pipeline(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("pipeline") / "folder"
    write_pipeline(run, target)
    return target


def test_config_json_and_checkpoints_name_the_classes(run):
    assert json.loads((run / "config.json").read_text())["model"]["classes"] == NAMES
    assert checkpoint.load(run)["meta"]["config"]["model"]["classes"] == NAMES
    assert load_generator(run).classes == tuple(NAMES)


def test_the_published_folder_names_the_classes(folder):
    assert json.loads((folder / "config.json").read_text())["model"]["classes"] == NAMES
    assert load_generator(folder).classes == tuple(NAMES)
    card = (folder / "README.md").read_text()
    assert "classes: 4 (10, ape, cat, tabby, dög)" in card and "sample(['10', 'ape']" in card


def test_samples_by_name_are_those_by_number(run, tmp_path):
    generator = load_generator(run)
    wanted = generator.sample([1, 3, 1], steps=2)
    assert torch.equal(generator.sample(["ape", "dög", 1], steps=2), wanted)
    common = ("--num", 4, "--steps", 2, "--out")
    sample(run, "--classes", "ape", "dög", *common, tmp_path / "names.npz")
    sample(run, "--classes", 1, 3, *common, tmp_path / "numbers.npz")
    with np.load(tmp_path / "names.npz") as names, np.load(tmp_path / "numbers.npz") as numbers:
        assert names["arr_1"].tolist() == [1, 1, 3, 3]
        assert np.array_equal(names["arr_0"], numbers["arr_0"])


@pytest.mark.parametrize("shown", ["names", "numbers"])
def test_the_grid_is_captioned_with_the_names(run, tmp_path, shown):
    out = tmp_path / "grid.png"
    kinds = ("ape", "dög") if shown == "names" else (1, 3)
    sample(run, "--classes", *kinds, "--num", 4, "--steps", 2, "--out", out)
    images = load_generator(run).sample([1, 1, 3, 3], steps=2)
    wanted = make_grid(images, columns=2, captions=["ape", "dög"])
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(wanted))


def test_the_drawn_set(shapes, tmp_path):
    done = sample(
        shapes, "--classes", "fish", "house", "--num", 2, "--steps", 1, "--out", tmp_path / "x.npz"
    )
    assert done.returncode == 0
    names = json.loads((shapes / "config.json").read_text())["model"]["classes"]
    with np.load(tmp_path / "x.npz") as archive:
        assert [names[label] for label in archive["arr_1"]] == ["fish", "house"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("fisch", "did you mean 'fish'"),
        ("99", "0..9"),
        ("-1", "unknown"),
        ("1.5", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_unknown_class_is_one_line_with_the_nearest(shapes, tmp_path, wanted, message):
    out = tmp_path / "x.png"
    arguments = ("--classes", wanted, "--num", 1, "--steps", 1, "--out", out)
    done = sample(shapes, *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()


def test_a_name_that_is_the_number_of_another_class(run):
    """ "10" is class 0 of this run, and no class has the number 10; "0" is a number alone."""
    generator = load_generator(run)
    assert generator.class_number("0") == 0 and generator.class_number("#3") == 3
    with pytest.raises(UserError, match="'10' is the number of a class and the name of class 0"):
        generator.class_number("10")
    assert generator.class_number("#0") == 0


def test_a_model_without_names(run, tmp_path):
    saved = checkpoint.load(run)
    model = saved["meta"]["config"]["model"]
    del model["classes"]
    checkpoint.save_imported(model, saved["ema"], tmp_path / "x.pth", layout="test")
    generator = load_generator(tmp_path / "x.pth")
    assert generator.classes is None and generator.sample(["3"], steps=1).shape[0] == 1
    with pytest.raises(UserError, match="have no names"):
        generator.sample(["ape"], steps=1)


def test_a_run_of_a_config_json_takes_the_names_of_its_own_data(run, shapes, tmp_path):
    """The names in a config are those of the data that it was used with before."""
    from support.runs import TINY

    more = ["--work-dir", tmp_path, "--max-iters", 1, "--cfg-options", *TINY]
    done = call("train", shapes / "config.json", "--data", run.parent / "data", *more)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["model"]["classes"] == NAMES


def test_a_resume_adds_no_word_on_names(shapes, tmp_path):
    """A checkpoint of an earlier version has none; it is continued without a report."""
    done = train(shapes, "--resume", iters=3, config="configs/sit-b.py")
    assert "model.classes" not in done.stdout


@pytest.mark.parametrize(
    "classes", ["fish", [], [1, 2], ["a", "a"], list("abcdefghijk"), {"0": "a"}], ids=str
)
def test_wrong_names_in_a_config_are_refused(run, tmp_path, classes):
    saved = checkpoint.load(run)
    model = {**saved["meta"]["config"]["model"], "classes": classes}
    checkpoint.save_imported(model, saved["ema"], tmp_path / "x.pth", layout="test")
    with pytest.raises(UserError, match="model.classes"):
        load_generator(tmp_path / "x.pth")


# ---- diffusers ------------------------------------------------------------------------------

STRANGER = """
import pickle, sys, torch
sys.modules["ahpa"] = None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
def draw(labels=(1, 3), **options):
    return pipe(**{"class_labels": labels, "num_inference_steps": 2, "latents": noise,
                   "output_type": "latent", **options}).images
found = {"numbers": draw([1, 3]), "names": draw(["ape", "d\\u00f6g"])}
found["tensor"], found["array"] = draw(torch.tensor([1, 3])), draw(torch.tensor([1, 3]).numpy())
one = pipe("ape", num_inference_steps=1, output_type="pt").images
assert one.shape == (1, 3, 64, 64)
assert pipe.get_label_ids(["ape", "cat, tabby"]) == [1, 2]
found["errors"] = {}
for name, options in pickle.loads(bytes.fromhex(sys.argv[3])).items():
    try:
        draw(**options)
        found["errors"][name] = "nothing"
    except ValueError as error:
        found["errors"][name] = str(error)
torch.save(found, sys.argv[2])
"""
MISTAKES = {
    "class_labels: 'fish' is unknown. Valid: 10, ape": dict(labels=["fish", "ape"]),
    "class_labels: the list is empty": dict(labels=[]),
    "class_labels: 4 is not in 0..3": dict(labels=[4, 1]),
    "class_labels: -1 is not in": dict(labels=[-1, 1]),
    "class_labels: 1.5 is not in": dict(labels=[1.5, 1]),
    "class_labels: True is not in": dict(labels=[True, 1]),
    "class_labels: None is not in": dict(labels=None),
    "latents: must have the shape (1, 4, 8, 8)": dict(labels=[1]),
    "num_inference_steps: must be a positive integer, got 0": dict(num_inference_steps=0),
    "num_inference_steps: must be a positive integer, got 2.5": dict(num_inference_steps=2.5),
    "output_type: 'pill' is unknown": dict(output_type="pill"),
    "guidance_interval: must be two numbers in [0, 1], got (0.9": dict(
        guidance_interval=(0.9, 0.1)
    ),
    "guidance_interval: must be two numbers in [0, 1], got 'ab'": dict(guidance_interval="ab"),
    "guidance_interval: must be two numbers in [0, 1], got (0.5,)": dict(guidance_interval=(0.5,)),
    "guidance_scale: must be a finite number, got 'x'": dict(guidance_scale="x"),
    "guidance_scale: must be a finite number, got nan": dict(guidance_scale=float("nan")),
    "latents: must be a tensor, got a list": dict(latents=[1]),
    "guidance_channels: must be in 1..4, got 9": dict(guidance_channels=9),
}


def test_a_stranger_samples_by_name_and_mistakes_are_refused(pipeline, tmp_path):
    """With diffusers alone. A label too many would be the null class, one less the last row."""
    index = json.loads((pipeline / "model_index.json").read_text())
    assert index["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    env = {**environment(), "PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    mistakes = pickle.dumps(MISTAKES).hex()
    arguments = [sys.executable, "-c", STRANGER, str(pipeline), str(tmp_path / "out.pt"), mistakes]
    done = subprocess.run(arguments, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt")
    for name in ("names", "tensor", "array"):
        assert torch.equal(found[name], found["numbers"]), name
    wrong = {name: said for name, said in found["errors"].items() if not said.startswith(name)}
    assert not wrong


def test_names_come_back_from_a_diffusers_folder(pipeline, tmp_path):
    read_pipeline(pipeline, tmp_path / "back.pth")
    assert load_generator(tmp_path / "back.pth").classes == tuple(NAMES)


@pytest.mark.parametrize(
    "labels",
    [["a"], "a", {"1": "a"}, {"0": 5}, {"0": "a", "1": "a"}, {str(i): i for i in range(9)}],
)
def test_wrong_names_of_a_diffusers_folder_are_refused(pipeline, tmp_path, labels):
    import shutil

    shutil.copytree(pipeline, tmp_path / "folder")
    path = tmp_path / "folder" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    with pytest.raises(UserError, match="id2label"):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
