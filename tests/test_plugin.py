"""Third parties: the example package is really installed (into a folder) and trains on real images; broken plugins."""

import os
import subprocess
import sys

import pytest
from support.runs import ROOT, TINY, environment, scalars

EXAMPLE = ROOT / "examples" / "custom_prior"
CONFIGS = EXAMPLE / "configs"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with the example installed in it, entry point and all."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(EXAMPLE)],
        capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def run(*arguments, path):
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT)])
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=env)


def test_the_registry_lists_an_installed_package(installed):
    done = run("-m", "ahpa.registry", "priors", "autoencoders", path=installed)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["TAEF2Taps", "ahpa_taef2.components"] in lines and ["TAEF2", "ahpa_taef2.components"] in lines
    assert "Levels of TAEF2's encoder" in done.stdout


def arguments(config, shared, work_dir):
    weights = shared / "weights"
    return ["tools/train.py", config, "--demo", "--data", shared / "data" / "cifar10-train.zip", "--work-dir", work_dir,
            "--max-iters", 4, "--cfg-options", *TINY, f"model.tokenizer.encoder={weights / 'taef2_encoder.safetensors'}",
            f"model.tokenizer.decoder={weights / 'taef2_decoder.safetensors'}"]  # fmt: skip


def check_run(done, work_dir):
    assert done.returncode == 0, done.stdout + done.stderr
    records = scalars(work_dir)
    assert len(records) == 4 and all(0 < record["loss_main_cosine"] < 2 for record in records)
    assert records[0]["loss_main_cosine"] != records[-1]["loss_main_cosine"]
    assert (work_dir / "policy").exists()


def test_an_installed_package_trains_on_real_images_and_samples(installed, shared, tmp_path):
    """TAEF2 as tokenizer and as prior, AHPA over its levels; then pictures from the checkpoint."""
    config = CONFIGS / "ahpa_sit-b_taef2_installed.py"
    check_run(run(*arguments(config, shared, tmp_path / "run"), path=installed), tmp_path / "run")
    out = tmp_path / "grid.png"
    done = run("tools/sample.py", tmp_path / "run", "--num", 4, "--steps", 2, "--out", out, path=installed)
    assert done.returncode == 0 and out.exists(), done.stderr


def test_custom_imports_need_no_install(shared, tmp_path):
    config = CONFIGS / "ahpa_sit-b_taef2.py"
    check_run(run(*arguments(config, shared, tmp_path / "run"), path=EXAMPLE), tmp_path / "run")


def test_without_the_package_the_message_says_what_is_missing(shared, tmp_path):
    done = run(*arguments(CONFIGS / "ahpa_sit-b_taef2_installed.py", shared, tmp_path), path=tmp_path)
    assert done.returncode == 2 and "model.tokenizer.type: no autoencoder is called 'TAEF2'" in done.stderr
    done = run(*arguments(CONFIGS / "ahpa_sit-b_taef2.py", shared, tmp_path), path=tmp_path)
    assert done.returncode == 2 and "custom_imports" in done.stderr and "ahpa_taef2" in done.stderr


def test_the_examples_own_tests_pass(installed, shared):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", EXAMPLE, EXAMPLE / "tests",
               path=installed)  # fmt: skip
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


@pytest.fixture
def broken(tmp_path):
    """An installed plugin whose import fails."""
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ahpa.plugins]\nbroken = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('the driver is too old')\n")
    return tmp_path


def test_a_broken_plugin_is_named_and_everything_else_works(broken):
    done = run("-m", "ahpa.registry", "routers", path=broken)
    assert done.returncode == 0 and "LUTRouter" in done.stdout
    assert "'broken'" in done.stderr and "the driver is too old" in done.stderr
    dry = run("tools/train.py", "configs/sit-b.py", "--demo", "--dry-run", path=broken)
    assert dry.returncode == 0, dry.stderr


def test_using_its_component_shows_the_original_traceback(broken):
    done = run("tools/train.py", "configs/ahpa_sit-b.py", "--demo", "--dry-run", "--cfg-options",
               "model.alignments.main.router=dict(type='BrokenRouter')", path=broken)  # fmt: skip
    assert done.returncode == 2 and "no router is called 'BrokenRouter'" in done.stderr
    assert "Traceback" in done.stderr and "RuntimeError: the driver is too old" in done.stderr
