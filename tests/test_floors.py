"""The house's rules: who may import whom, no method's name in the engine, documented files, lines
that fit a screen, light imports, and a short path from the shell to a loss."""

import ast
import re
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from support.runs import ROOT, TINY

from ahpa.losses.pairwise import CosineLoss

SOURCES = sorted((ROOT / "ahpa").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
WIDTH = 100  # columns

FLOOR_1 = {
    "flow",
    "backbones",
    "conditioning",
    "tokenizers",
    "priors",
    "routers",
    "losses",
    "alignment",
    "sampling",
    "data",
    "evaluation",
}
FLOOR_3 = {"analysis", "interop", "cli", "testing"}
# The engine builds components through registries, with two exceptions that are no components: there
# is one of each, nobody replaces them in a config, and both are about the loop's own arithmetic.
EXCEPTIONS = {
    "ahpa.sampling.generator",  # pictures during training are drawn as `ahpa sample` draws them
    "ahpa.data.sampler",  # the loader whose place is a function of the samples consumed
}


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Modules of ahpa that a file imports, as "ahpa.room.module", relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "ahpa" and len(parts) > 1:
                yield ".".join(parts[:3])


def room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_floors(path):
    parts = path.relative_to(ROOT).parts
    own = parts[1] if len(parts) > 2 else ""
    found = {module for module in imported(path) if room(module) != own}
    if own == "registry":
        assert not found
    elif own in FLOOR_1:
        assert {room(module) for module in found} <= {"registry"}, found
    elif own == "engine":
        above = {module for module in found if room(module) != "registry"}
        assert above <= EXCEPTIONS, above
    else:
        assert own in FLOOR_3 or not found, f"{own} is in no floor"


def test_every_room_has_a_floor():
    rooms = {path.parent.name for path in (ROOT / "ahpa").glob("*/__init__.py")}
    assert rooms <= {"registry", "engine", *FLOOR_1, *FLOOR_3}


def test_the_two_exceptions_are_in_use():
    engine = (ROOT / "ahpa" / "engine").glob("*.py")
    assert {module for path in engine for module in imported(path)} >= EXCEPTIONS


def test_the_walk_sees_imports():
    found = {room(module) for module in imported(ROOT / "ahpa" / "analysis" / "policy.py")}
    assert found == {"registry"}
    hooks = set(imported(ROOT / "ahpa" / "engine" / "hooks.py"))
    assert "ahpa.sampling.generator" in hooks and "ahpa.registry.HOOKS" in hooks


def test_the_engine_holds_no_methods_name():
    names = "i?repa|sara|sra2?|reg|dupa|layersync|dispersive|delta-?fm|haste|self-?flow"
    pattern = re.compile(rf"\b({names})\b", re.IGNORECASE)
    found = [
        f"{path.name}: {match.group()}"
        for path in (ROOT / "ahpa" / "engine").rglob("*.py")
        for match in pattern.finditer(path.read_text())
    ]
    assert not found


# ---- how a file looks ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SOURCES, *TOOLS], ids=name_of)
def test_style(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says what it is"
    assert not re.search("TO" + "DO|FIX" + "ME|fmt:" + " skip|fmt:" + " off", text)


@pytest.mark.parametrize("path", [*SOURCES, *TOOLS, *TESTS], ids=name_of)
def test_lines_fit(path):
    lines = enumerate(path.read_text().splitlines(), 1)
    assert not [f"line {number}: {len(line)}" for number, line in lines if len(line) > WIDTH]


GUESSES = ("hasattr", "getattr", "__dict__")


def guesses(path):
    """Functions in which a file looks for attributes that it does not know."""
    tree = ast.parse(path.read_text())
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(scope):
            name = node.id if isinstance(node, ast.Name) else ""
            name = node.attr if isinstance(node, ast.Attribute) else name
            if name in GUESSES:
                yield f"{scope.name}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_contracts_instead_of_guesses(path):
    """mmengine's hook points are called by name: the one place where an attribute is looked up."""
    allowed = ["call_hooks: getattr"] if name_of(path) == "ahpa/engine/runner.py" else []
    assert list(guesses(path)) == allowed


# ---- what an import costs -----------------------------------------------------------------------

HEAVY = ("torch", "diffusers", "timm", "open_clip")


@pytest.mark.parametrize("name", ["ahpa", "ahpa.registry"])
def test_imports_are_light(name):
    code = f"import sys, {name}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_hooks_options_are_checked_without_the_compiler_of_kernels():
    """Every mistake in a hook's options would wait for it."""
    code = "import sys, ahpa.analysis.evaluation_hook; print('triton' in sys.modules)"
    code += "; import ahpa.analysis.cost; print('torch.utils.flop_counter' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"], done.stdout + done.stderr


# ---- the path from the shell to a loss ----------------------------------------------------------

MOST_FRAMES = 7
MOST_FILES = 5  # the command, the loop, the model, the alignment, the loss


class Reached(Exception):
    """Ends the run in the loss."""


def test_the_path_from_the_shell_to_the_cosine_is_short(tmp_path, monkeypatch):
    """`python tools/train.py ...` as the shell runs it: our own frames above CosineLoss.compare."""
    found = []

    def compare(self, *tensors):
        ours = [
            frame
            for frame in traceback.extract_stack()
            if any(Path(frame.filename).is_relative_to(ROOT / part) for part in ("ahpa", "tools"))
        ]
        found.append([(name_of(Path(f.filename)), f.name, f.lineno) for f in ours])
        raise Reached

    monkeypatch.setattr(CosineLoss, "compare", compare)
    given = ["configs/ahpa_sit-b.py", "--demo", "--work-dir", str(tmp_path), "--max-iters", "1"]
    config = str(ROOT / given[0])
    monkeypatch.setattr(sys, "argv", ["train.py", config, *given[1:], "--cfg-options", *TINY])
    with pytest.raises(Reached):
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
    (frames,) = found
    shown = "\n".join(f"{file}:{line} {function}" for file, function, line in frames)
    assert frames[0][0] == "tools/train.py" and frames[-1][0] == "ahpa/losses/pairwise.py"
    assert len(frames) <= MOST_FRAMES, f"{len(frames)} frames\n{shown}"
    files = {file for file, _, _ in frames}
    assert len(files) <= MOST_FILES, f"{len(files)} files\n{shown}"
