"""The README and docs say what is so: commands parse, files exist, the first command runs."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.runs import ROOT, TINY, environment, scalars

from ahpa.cli.main import COMMANDS as SUBCOMMANDS
from ahpa.engine import config as configs
from ahpa.registry.locations import find_config

README = (ROOT / "README.md").read_text()
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
BLOCKS = [
    block
    for text in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
]
COMMANDS = sorted(
    {
        line.split(" #")[0].strip()
        for block in BLOCKS
        for line in block.replace("\\\n", " ").splitlines()
        if re.search(r"tools/\w+\.py|^ahpa ", line)
    }
)
OF_READERS = ("my_config.py",)  # files that a command names and its reader has


def parsed(command):
    """Parse a command by its own parser -> (name, arguments)."""
    words = shlex.split(command.split("&&")[-1])
    if words[0] == "ahpa":
        name, rest = words[1], words[2:]
    else:
        at = next(i for i, word in enumerate(words) if word.startswith("tools/"))
        assert (ROOT / words[at]).exists(), words[at]
        name, rest = Path(words[at]).stem.replace("_", "-"), words[at + 1 :]
    module = importlib.import_module(f"ahpa.cli.{SUBCOMMANDS[name][0]}")
    return name, module.parse(rest) if hasattr(module, "parse") else rest


def test_the_two_commands_are_there_as_promised():
    command = "pip install -e . && python tools/train.py configs/ahpa_sit-b_router-lut.py --demo\n"
    assert command in README
    assert "pip install -e '.[dev]' && pytest\n" in README
    assert "pip install -q -e '.[dev]' && pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_names_configs_and_options_that_exist(command):
    name, args = parsed(command)
    if name != "train":
        return
    if args.config == "config.json":
        return
    path = find_config(args.config if args.config not in OF_READERS else "ahpa_sit-b")
    cfg = configs.load(path)
    for option in args.cfg_options:
        configs.set_option(cfg, option)


def test_the_first_command_runs_as_written(tmp_path):
    """But for the install, the number of steps and the size of the backbone."""
    command = next(c for c in COMMANDS if c.startswith("pip install -e . &&"))
    words = shlex.split(command.split("&&")[1])
    assert words[0] == "python"
    smaller = ["--work-dir", str(tmp_path), "--max-iters", "3", "--cfg-options", *TINY]
    run = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment()}
    done = subprocess.run([sys.executable, *words[1:], *smaller], **run)
    assert done.returncode == 0, done.stderr
    assert len(scalars(tmp_path)) == 3
    printed = re.search(r"sample from it: python (.*)", done.stdout)[1]
    out = subprocess.run([sys.executable, *shlex.split(printed), "--steps", "2"], **run)
    assert out.returncode == 0, out.stderr
    assert Image.open(tmp_path / "samples.png").size[0] > 100


def test_the_readmes_prior_passes_the_check():
    """With a network of one convolution in place of the reader's own."""
    import torch

    from ahpa.registry import PRIORS
    from ahpa.testing import check_prior

    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {"my_frozen_network": torch.nn.Conv2d(3, 256, 16, stride=16).requires_grad_(False)}
    try:
        exec(compile(block, "README.md", "exec"), names)
        check_prior(dict(type="MyPrior"))
    finally:
        PRIORS.module_dict.pop("MyPrior", None)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_exist(name):
    base = (ROOT / name).parent
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    generated = set()
    if name == "docs/api/index.md":  # its links lead to pages that are made with the site
        rooms = (path.parent.name for path in (ROOT / "ahpa").glob("*/__init__.py"))
        generated = {f"{room}.md" for room in rooms}
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert target in generated or (base / target).exists(), target
    folders = "ahpa|configs|tests|docs|examples|tools|benchmarks"
    for file in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text):
        assert (ROOT / file).exists(), file
