"""The README and docs say what is so: their commands parse, their files exist, the first command runs."""

import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from support.runs import ROOT, TINY, environment, scalars

sys.path.insert(0, str(ROOT / "tools"))
import import_weights as import_tool
import publish as publish_tool
import sample as sample_tool
import train as train_tool

README = (ROOT / "README.md").read_text()
PAGES = {
    path.name: path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
}
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)]
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.search(r"tools/\w+\.py", line)
]


def test_the_two_commands_are_there_as_promised():
    assert "pip install -e . && python tools/train.py configs/ahpa_sit-b_router-lut.py --demo\n" in README
    assert "pip install -e '.[dev]' && pytest\n" in README
    assert "pip install -q -e '.[dev]' && pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_names_files_that_exist(command):
    words = shlex.split(command.split("&&")[-1])
    at = next(i for i, word in enumerate(words) if word.startswith("tools/"))
    tools = (train_tool, sample_tool, import_tool, publish_tool)
    tool = {f"tools/{tool.__name__}.py": tool for tool in tools}[words[at]]
    args = tool.parse(words[at + 1 :])
    if tool is train_tool:
        assert (ROOT / args.config).exists()


def test_the_first_command_runs_as_written(tmp_path):
    """But for the install, the number of steps and the size of the backbone."""
    command = next(c for c in COMMANDS if c.startswith("pip install -e . &&"))
    words = shlex.split(command.split("&&")[1])
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:], "--work-dir", str(tmp_path), "--max-iters", "3", "--cfg-options", *TINY],
        capture_output=True, text=True, cwd=ROOT, env=environment())  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(scalars(tmp_path)) == 3
    printed = re.search(r"sample from it: python (.*)", done.stdout)[1]
    out = subprocess.run([sys.executable, *shlex.split(printed), "--steps", "2"], capture_output=True, text=True, cwd=ROOT,
                         env=environment())  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert Image.open(tmp_path / "samples.png").size[0] > 100


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_exist(name):
    base = ROOT if name in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert (base / target).exists(), target
    for file in re.findall(r"`((?:ahpa|configs|tests|docs|examples|tools|benchmarks)/[\w./-]+\.\w+)`", PAGES[name]):
        assert (ROOT / file).exists(), file
