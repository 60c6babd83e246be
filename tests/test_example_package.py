"""`examples/new_method`, an outside package of fourteen components, is installed and used.

Every process here is a new one, with the folder of the installed package on PYTHONPATH: Python
finds packages and entry points there as it does in site-packages.
"""

import csv
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT, assert_same_state, environment, final_state, scalars, stable

EXAMPLE = ROOT / "examples" / "new_method"
CONFIG = EXAMPLE / "configs" / "new-method_rotary-b.py"
DRAWN = "train_dataloader.dataset=dict(type='ShapesDataset')"
SMALLER = (
    "model.backbone.hidden_size=32",
    "model.backbone.num_heads=2",
    "train_dataloader.global_batch_size=4",
    "train_cfg.log_interval=1",
    "checkpoints.interval=2",
    "hooks.samples.steps=2",
    "hooks.samples.columns=1",
    "hooks.norms.interval=1",
)
COMPONENTS = {  # registry -> component -> its module
    "PRIORS": ("GradientPyramid", "prior"),
    "ROUTERS": ("BumpRouter", "router"),
    "PROJECTORS": ("BottleneckProjector", "projector"),
    "PAIR_LOSSES": ("HuberCosineLoss", "losses"),
    "REGULARISERS": ("VarianceFloor", "losses"),
    "BACKBONES": ("RotaryTransformer", "backbone"),
    "SAMPLERS": ("ab2", "sampler"),
    "HOOKS": ("TokenNorms", "hook"),
    "PATHS": ("BentCosinePath", "path"),
    "FLOWS": ("StratifiedFlow", "flow"),
    "CONDITIONERS": ("PerClassDropout", "conditioner"),
    "SCHEDULES": ("WarmUpHold", "schedule"),
    "ALIGNMENTS": ("AveragedTaps", "alignment"),
    "DATASETS": ("Plaids", "data"),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package installed in it, built from a copy: a build leaves files behind."""
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


def run(site: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a new Python with the installed package and this checkout on its path."""
    env = environment(PYTHONPATH=os.pathsep.join([str(site), str(ROOT)]))
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def train(site: Path, work_dir: Path, *arguments, options=()) -> subprocess.CompletedProcess:
    """Train four steps of the config's demo, made smaller still."""
    given = ["--demo", "--max-iters", 4, "--work-dir", work_dir, *arguments]
    return run(site, "tools/train.py", CONFIG, *given, "--cfg-options", *SMALLER, *options)


@pytest.fixture(scope="module")
def finished(installed, tmp_path_factory) -> Path:
    """The work dir of an uninterrupted run on the package's own data set."""
    work_dir = tmp_path_factory.mktemp("run") / "run"
    done = train(installed, work_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "4 classes (gradient, grating, plaid, rings)" in said
    assert " --sampler ab2" in said  # the command that samples as the run's own grids
    return work_dir


def check_run(work_dir: Path) -> None:
    """The run's terms are finite, the alignment's weight warms up, and its files are there."""
    records = scalars(work_dir)
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    for record in records:
        terms = {name: value for name, value in record.items() if name.startswith("loss")}
        assert set(terms) == {"loss", "loss/flow", "loss/main/pair", "loss/spread/regulariser"}
        assert all(map(math.isfinite, terms.values())), terms
        assert 0 < record["main/pair"] < 2
        done = record["iteration"] - 1
        weight = 0.5 * (0.1 + 0.9 * done / 100)  # WarmUpHold(value=0.5, steps=100, start=0.1)
        assert record["loss/main/pair"] == pytest.approx(weight * record["main/pair"], rel=1e-4)
    assert (work_dir / "samples" / "iter_000000004.png").stat().st_size > 1000
    policy = list(csv.DictReader((work_dir / "policy" / "main_iter_000000004.csv").open()))
    assert float(policy[0]["alpha_all_scale4"]) > float(policy[-1]["alpha_all_scale4"])
    norms = list(csv.DictReader((work_dir / "token_norms.csv").open()))
    measured = [(int(row["iteration"]), int(row["block"])) for row in norms]
    assert measured == [(i, block) for i in range(1, 5) for block in range(1, 7)]


def test_all_components_are_listed(installed):
    done = run(installed, "-m", "ahpa.cli.main", "list", *COMPONENTS)
    assert done.returncode == 0, done.stderr
    listed: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            kind = listed.setdefault(line.split()[0], {})
            continue
        name, module, summary = line.split(maxsplit=2)
        kind[name] = module
        assert summary
    for registry, (name, module) in COMPONENTS.items():
        assert listed[registry].get(name) == f"ahpa_new_method.{module}"


def test_it_trains_on_its_own_data_set(finished):
    check_run(finished)


@pytest.mark.slow
def test_it_trains_on_the_drawn_set(installed, tmp_path):
    done = train(installed, tmp_path / "run", options=[DRAWN])
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "run")


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(installed, finished, tmp_path):
    """Bit for bit, from the checkpoint after two of four steps: weights, moments, random states,
    the schedule's buffers, the hook's rows, the log and the table."""
    work_dir = tmp_path / "run"
    shutil.copytree(finished, work_dir)
    (work_dir / "checkpoints" / "iter_000000004.pth").unlink()
    done = train(installed, work_dir, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at iteration 2" in done.stdout + done.stderr
    state = final_state(finished)
    assert state["model"]["alignments.main.weight.advanced"] == 4
    assert state["hooks"]["norms"]["rows"].shape == (24, 6)
    assert_same_state(state, final_state(work_dir))
    assert stable(finished) == stable(work_dir)
    table = "token_norms.csv"
    assert (work_dir / table).read_bytes() == (finished / table).read_bytes()


def test_it_samples_with_its_sampler(installed, finished, tmp_path):
    """Its own sampler gives other pictures than Euler's method."""
    images = []
    for sampler in ("ab2", "euler"):
        out = tmp_path / f"{sampler}.png"
        given = ("--num", 4, "--steps", 3, "--sampler", sampler, "--weights", "model")
        done = run(installed, "tools/sample.py", finished, *given, "--out", out)
        assert done.returncode == 0, done.stderr
        assert out.stat().st_size > 1000
        images.append(out.read_bytes())
    assert images[0] != images[1]


@pytest.mark.slow
def test_a_dry_run_reports_the_cost(installed):
    """The demo has half as many blocks, so blocks 2, 4 and 6 have become 1, 2 and 3."""
    arguments = ("tools/train.py", CONFIG, "--demo", "--dry-run", "--cfg-options", *SMALLER)
    done = run(installed, *arguments)
    assert done.returncode == 0, done.stderr
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert "router parameters 3" in lines
    assert "taps 1, 2, 3 of 6" in lines
    assert "alignment spread block 3 <- VarianceFloor, without a prior" in lines
    blocks = "alignment main mean of blocks 1, 2, 3 <- edges (scale4, scale8, scale16, scale32)"
    assert blocks in lines
    assert any(line.startswith("+ projector of main") for line in lines)
    assert any(line.startswith("forward GMAC an image") for line in lines)


def test_a_mistyped_option_is_one_line(installed, tmp_path):
    option = "model.alignments.main.router=dict(type='BumpRouter', widht=1.0)"
    done = train(installed, tmp_path / "run", options=[option])
    assert done.returncode == 2
    wanted = "error: model.alignments.main.router: BumpRouter has no option 'widht'"
    assert done.stderr.strip() == f"{wanted}; did you mean 'width'? Valid: width."
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_packages_own_tests_pass(installed):
    folder = EXAMPLE / "tests"
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", EXAMPLE)
    done = run(installed, "-m", "pytest", *options, folder)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout
    assert "passed" in last and "skipped" not in last
