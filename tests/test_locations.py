"""Configs by package name, in a checkout and in a wheel; the data set has the model's size."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
from support.runs import ROOT, TINY, environment, scalars

from ahpa.engine.config import check_config, load
from ahpa.engine.runner import build_dataset
from ahpa.registry import ConfigError, UserError
from ahpa.registry.locations import config_path, config_root


def test_in_a_checkout_the_configs_stand_beside_the_package():
    assert config_root() == ROOT / "configs"
    assert config_path("ahpa::_base_/runtime.py") == ROOT / "configs" / "_base_" / "runtime.py"
    assert str(config_path("configs/sit-b.py")) == "configs/sit-b.py"


def test_a_shipped_config_is_read_by_package_name():
    assert load("ahpa::ahpa_sit-b.py") == load(ROOT / "configs" / "ahpa_sit-b.py")
    with pytest.raises(UserError, match="ahpa_sit-b.py"):
        load("ahpa::ahpa_sit_b.py")


def test_a_config_elsewhere_is_over_our_bricks(tmp_path):
    (tmp_path / "mine.py").write_text(
        "_base_ = [\n"
        "    'ahpa::_base_/backbones/sit-l.py',\n"
        "    'ahpa::_base_/methods/ahpa.py',\n"
        "    'ahpa::_base_/recipes/ahpa.py',\n"
        "]\n"
        "_base_.model.merge(_base_._ahpa)\n"
        "_base_.model.alignments.main.tap = 6\n"
    )
    (tmp_path / "over.py").write_text(
        '_base_ = ["mine.py"]\n'  # a base of a base
        "_base_.model.alignments.main.weight = 0.5\n"
    )
    wanted = load(ROOT / "configs" / "ahpa_sit-l.py")
    assert load(tmp_path / "mine.py") == wanted
    wanted["model"]["alignments"]["main"]["weight"] = 0.5
    assert load(tmp_path / "over.py") == wanted


def test_an_unknown_base_is_named(tmp_path):
    (tmp_path / "mine.py").write_text('_base_ = ["ahpa::_base_/backbones/sit-q.py"]\n')
    with pytest.raises(ConfigError, match="backbones/sit-q.py"):
        load(tmp_path / "mine.py")


DRAWN = "train_dataloader.dataset=dict(type='ShapesDataset', length=8)"


@pytest.mark.parametrize("options, side", [([], 256), (["model.resolution=64"], 64)])
def test_the_data_set_has_the_models_resolution(options, side):
    cfg = load(ROOT / "configs" / "ahpa_sit-b.py", [DRAWN, *options])
    assert build_dataset(cfg)[0]["image"].shape == (3, side, side)


def test_a_resolution_of_the_data_set_alone_is_refused():
    option = "train_dataloader.dataset.resolution=128"
    cfg = load(ROOT / "configs" / "ahpa_sit-b.py", [option])
    with pytest.raises(ConfigError, match="'resolution' follows from the other parts"):
        check_config(cfg)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy (a build leaves files behind) and unpacked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ahpa", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    if importlib.util.find_spec("setuptools"):  # else pip fetches it for the build
        command.append("--no-build-isolation")
    done = subprocess.run([*command, "-w", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(target.glob("*.whl"))) as archive:
        archive.extractall(target / "site")
    return target / "site"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".pyc"}


def test_a_wheel_carries_the_configs(wheel):
    """All of them, read by package name from the wheel alone."""
    folder = wheel / "ahpa" / "configs"
    assert files(folder) == files(ROOT / "configs") and len(files(folder)) > 190
    code = (
        "import json\n"
        "from ahpa.engine.config import load\n"
        "from ahpa.registry.locations import config_root\n"
        "model = load('ahpa::ahpa_sit-b_router-lut.py')['model']\n"
        "print(json.dumps([str(config_root()), model]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=wheel,
        env=environment(PYTHONPATH=str(wheel)),
    )
    assert done.returncode == 0, done.stderr
    root, model = json.loads(done.stdout)
    assert root == str(folder)
    assert model == load(ROOT / "configs" / "ahpa_sit-b_router-lut.py")["model"]


def test_a_wheel_trains_the_demo(wheel, tmp_path):
    """In an empty folder, from the wheel alone, by the console command's module."""
    small = [option for option in TINY if not option.startswith("hooks.samples.interval")]
    command = [sys.executable, "-m", "ahpa.cli.main", "train", "ahpa_sit-b_router-lut", "--demo"]
    done = subprocess.run(
        [*command, "--max-iters", "2", "--cfg-options", *small],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(wheel)),
    )
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work_dirs" / "ahpa_sit-b_router-lut_demo"
    assert len(scalars(work)) == 2 and list((work / "samples").glob("*.png"))
    assert "sample from it: ahpa sample" in done.stdout  # there is no tools/ in a wheel
    out = tmp_path / "samples.png"
    sample = [sys.executable, "-m", "ahpa.cli.main", "sample", work, "--num", "2", "--steps", "2"]
    done = subprocess.run(
        [*sample, "--out", out],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(wheel)),
    )
    assert done.returncode == 0 and out.exists(), done.stderr


def test_the_locations_need_no_torch():
    code = "import sys, ahpa.registry.locations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr
