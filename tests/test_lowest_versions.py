"""The lower bounds of pyproject.toml are the versions that `make lowest` ran."""

import importlib.util
import subprocess
import sys

import pytest
from support.runs import ROOT, environment

TOOL = ROOT / "tools" / "lowest_versions.py"
spec = importlib.util.spec_from_file_location("lowest_versions", TOOL)
lowest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lowest)

PROJECT = (ROOT / "pyproject.toml").read_text()
BOUNDS = lowest.lower_bounds(PROJECT)
RECORDED = lowest.recorded(lowest.RECORD.read_text())


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_the_version_that_was_run(name):
    ran = RECORDED.get(name, "nothing")
    message = f"{name}>={BOUNDS[name]} is declared, but {ran} was run: `make lowest`"
    assert lowest.release(ran) == lowest.release(BOUNDS[name]), message


def test_the_lowest_python_was_run():
    declared = lowest.lowest_python(PROJECT)
    assert RECORDED["python"].startswith(f"{declared}."), "run `make lowest`"


def test_every_dependency_has_a_lower_bound_alone():
    assert {"torch", "timm", "open-clip-torch", "tensorboard", "wandb", "pytest"} <= set(BOUNDS)
    listed = PROJECT.split("dependencies = [")[1].split("]")[0].count('"') // 2
    section = PROJECT.split("dependencies = [")[1].split("]")[0]
    assert len(lowest.BOUND.findall(section)) == listed, "write each dependency as NAME>=VERSION"


@pytest.mark.parametrize(
    ("declared", "ran", "same"),
    [
        ("2.6", "2.6.0", True),
        ("2.6", "2.6.0+cpu", True),
        ("1.0.23", "1.0.24", False),
        ("1.0", "1.0.3", False),
        ("10", "10.0.0", True),
        ("10", "1", False),
    ],
)
def test_releases_are_compared_without_trailing_zeros(declared, ran, same):
    assert (lowest.release(declared) == lowest.release(ran)) is same


def test_bounds_are_read_from_all_sections_but_that_of_the_site():
    project = """
requires = ["setuptools>=77.0.3"]  # a remark
requires-python = ">=3.10"
dependencies = [
    "open_clip_torch>=2.32",
]
dev = ["pytest>=8", "ruff>=0.13"]
docs = [
    "mkdocs>=1.6,<2",
    "nbclient>=0.11",  # a remark
]
wandb = ["wandb>=0.16"]
"""
    assert lowest.lower_bounds(project) == {
        "setuptools": "77.0.3",
        "open-clip-torch": "2.32",
        "pytest": "8",
        "ruff": "0.13",
        "wandb": "0.16",
    }
    assert lowest.lowest_python(project) == "3.10"


@pytest.mark.slow
def test_the_commands_of_make_lowest_succeed_here():
    whole = [sys.executable, str(TOOL), "--here"]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
