"""Third parties: the example package is really installed (into a folder) and trains on real
images; broken plugins.

Every process here is a new one, with the folder on PYTHONPATH: Python finds packages and entry
points there as it does in site-packages.
"""

import ast
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from support.runs import ROOT, TINY, environment, scalars

EXAMPLE = ROOT / "examples" / "custom_prior"
CONFIGS = EXAMPLE / "configs"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with the example installed in it, entry point and all. It is built from a copy,
    since a build leaves files behind."""
    source = tmp_path_factory.mktemp("source") / "package"
    target = tmp_path_factory.mktemp("site")
    left_out = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(EXAMPLE, source, ignore=left_out)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(target)]
    if importlib.util.find_spec("setuptools"):  # else pip fetches it for the build
        command.append("--no-build-isolation")
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def uninstalled(tmp_path_factory):
    """A folder with the example's code alone: no metadata, so no entry point."""
    folder = tmp_path_factory.mktemp("code")
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(EXAMPLE / "ahpa_taef2", folder / "ahpa_taef2", ignore=left_out)
    return folder


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    """A folder with an installed plugin whose import fails."""
    folder = tmp_path_factory.mktemp("broken")
    info = folder / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ahpa.plugins]\nbroken = broken_plugin\n")
    (folder / "broken_plugin.py").write_text("raise RuntimeError('the driver is too old')\n")
    return folder


def run(*arguments, path):
    """Run a new Python with these folders (or this one) on its path -> the finished process."""
    folders = path if isinstance(path, tuple) else (path,)
    env = environment(PYTHONPATH=os.pathsep.join(map(str, (*folders, ROOT))))
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def train(config, shared, work_dir, *, path):
    """Four steps of a small backbone on CIFAR-10's pictures at 64 px, with TAEF2 as tokenizer and
    as prior."""
    weights = shared / "weights"
    files = [
        f"model.tokenizer.{part}={weights / f'taef2_{part}.safetensors'}"
        for part in ("encoder", "decoder")
    ]
    data = ("--data", shared / "data" / "cifar10-train.zip")
    given = ("--demo", *data, "--work-dir", work_dir, "--max-iters", 4)
    config = CONFIGS / config
    return run("tools/train.py", config, *given, "--cfg-options", *TINY, *files, path=path)


def check_run(done, work_dir):
    """It ended, its terms are finite and move, and it left pictures of the policy over TAEF2's
    levels."""
    assert done.returncode == 0, done.stdout + done.stderr
    records = scalars(work_dir)
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    for record in records:
        terms = {name: value for name, value in record.items() if name.startswith("loss")}
        assert set(terms) == {"loss", "loss/flow", "loss/main/cosine"}
        assert all(map(math.isfinite, terms.values())), terms
        assert 0 < record["main/cosine"] < 2
    assert records[0]["main/cosine"] != records[-1]["main/cosine"]
    tables = "".join(table.read_text() for table in (work_dir / "policy").rglob("*.csv"))
    assert "stage2.down" in tables and "stage3.block2" in tables
    assert "stage1" not in tables  # '4/4': the last eight


def sample(work_dir, out, *arguments, path):
    given = (work_dir, "--num", 4, "--steps", 2, "--out", out)
    return run("tools/sample.py", *given, *arguments, path=path)


def test_the_registry_lists_an_installed_package(installed):
    done = run("-m", "ahpa.registry", "priors", "tokenizers", path=installed)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["TAEF2Taps", "ahpa_taef2.prior"] in lines
    assert ["TAEF2", "ahpa_taef2.tokenizer"] in lines
    assert "Levels of TAEF2's encoder" in done.stdout


def test_an_installed_package_trains_on_real_images_and_samples(installed, shared, tmp_path):
    """The config names no import: the entry point alone brings the components, in training and
    in sampling."""
    work_dir, config = tmp_path / "run", "ahpa_sit-b_taef2_installed.py"
    check_run(train(config, shared, work_dir, path=installed), work_dir)
    done = sample(work_dir, tmp_path / "grid.png", path=installed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.slow
def test_custom_imports_need_no_install(uninstalled, shared, tmp_path):
    """A checkpoint imports nothing by itself, so sampling is told the config (trusted code) that
    does."""
    work_dir, config = tmp_path / "run", "ahpa_sit-b_taef2.py"
    done = train(config, shared, work_dir, path=uninstalled)
    check_run(done, work_dir)
    assert f"--config {work_dir}/config.json" in done.stdout, "the command that is printed says so"
    out = tmp_path / "grid.png"
    untold = sample(work_dir, out, path=uninstalled)
    assert untold.returncode == 2 and not out.exists()
    assert "no tokenizer is called 'TAEF2'" in untold.stderr
    told = sample(work_dir, out, "--config", CONFIGS / config, path=uninstalled)
    assert told.returncode == 0 and out.exists(), told.stderr


@pytest.mark.slow
def test_the_latents_of_another_packages_autoencoder_are_measured(uninstalled, shared, tmp_path):
    """TAEF2 is deterministic and has 32 channels; its package has measured the same images."""
    encoder = shared / "weights" / "taef2_encoder.safetensors"
    options = [f"model.tokenizer.encoder={encoder}", "model.tokenizer.decoder=None"]
    options += ["model.tokenizer.mean=0.0", "model.tokenizer.std=1.0"]
    data = shared / "data" / "imagenet256-sample.zip"
    given = ["tools/latent_statistics.py", "--config", CONFIGS / "ahpa_sit-b_taef2.py"]
    given += ["--data", data, "--num", "12", "--batch", "4", "--cfg-options", *options]
    done = run(*given, path=uninstalled)
    assert done.returncode == 0, done.stderr
    first, mean, std, told = done.stdout.splitlines()
    assert first.startswith("12 images of 1000, 256 px, TAEF2")
    assert "as model.tokenizer gives them" in told
    means, stds = json.loads(mean.removeprefix("mean ")), json.loads(std.removeprefix("std  "))
    text = (EXAMPLE / "ahpa_taef2" / "tokenizer.py").read_text()
    for name, found in (("MEAN", means), ("STD", stds)):
        known = ast.literal_eval(text.partition(f"{name} = ")[2].partition("\n)")[0] + ")")
        assert found == pytest.approx(known, abs=0.25), name
    out = tmp_path / "latents.py"
    refused = run(*given, "--out", out, path=uninstalled)
    assert refused.returncode == 2 and not out.exists()
    assert "error: --out: writes mean and std of a KLAutoencoder" in refused.stderr


def test_without_the_package_the_message_says_what_is_missing(shared, tmp_path):
    done = train("ahpa_sit-b_taef2_installed.py", shared, tmp_path, path=tmp_path)
    assert done.returncode == 2
    assert "model.tokenizer.type: no tokenizer is called 'TAEF2'" in done.stderr
    done = train("ahpa_sit-b_taef2.py", shared, tmp_path, path=tmp_path)
    assert done.returncode == 2 and "custom_imports" in done.stderr and "ahpa_taef2" in done.stderr


@pytest.mark.slow
def test_the_examples_own_tests_pass(installed, shared):
    alone = ("-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", EXAMPLE)
    done = run("-m", "pytest", "-q", *alone, EXAMPLE / "tests", path=installed)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0 and "passed" in last and "skipped" not in last, done.stdout


@pytest.mark.slow
def test_a_broken_plugin_is_a_warning_and_everything_else_works(
    broken, installed, shared, tmp_path
):
    """Beside it, another plugin is found and trains."""
    work_dir, config = tmp_path / "run", "ahpa_sit-b_taef2_installed.py"
    done = train(config, shared, work_dir, path=(broken, installed))
    check_run(done, work_dir)
    warning = "UserWarning: the ahpa plugin 'broken' (broken_plugin) could not be imported"
    assert warning in done.stderr and "RuntimeError: the driver is too old" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_listing_names_a_broken_plugin(broken):
    done = run("-m", "ahpa.registry", "routers", path=broken)
    assert done.returncode == 0 and "LUTRouter" in done.stdout
    assert "plugin 'broken'" in done.stderr
    assert "RuntimeError: the driver is too old" in done.stderr


def test_using_its_component_shows_the_original_traceback(broken):
    router = "model.alignments.main.router=dict(type='BrokenRouter')"
    given = ("configs/ahpa_sit-b.py", "--demo", "--dry-run", "--cfg-options", router)
    done = run("tools/train.py", *given, path=broken)
    assert done.returncode == 2 and "no router is called 'BrokenRouter'" in done.stderr
    assert "Traceback" in done.stderr and "RuntimeError: the driver is too old" in done.stderr
    assert "broken_plugin.py" in done.stderr  # the line of the outside file
