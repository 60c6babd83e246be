"""The house's rules: who may import whom, no method's name in the engine, short documented files, light imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR_1 = {"flow", "backbones", "priors", "routers", "losses", "data", "evaluation"}
SOURCES = sorted([*(ROOT / "ahpa").rglob("*.py"), *(ROOT / "tools").glob("*.py")])
LONG_TABLES = {"mutant_list.py"}  # data, of any length


def imported(path):
    """Names of the packages of ahpa that a file imports, relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "ahpa" and len(name.split(".")) > 1:
                yield name.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_floors(path):
    parts = path.relative_to(ROOT).parts
    own, found = parts[1] if len(parts) > 2 else "", set(imported(path))
    if own == "registry":
        assert found <= {"registry"}
    elif own in FLOOR_1:
        assert found <= {"registry", own}
    elif own == "engine":
        assert found <= {"registry", "engine"}


def test_the_walk_sees_imports(tmp_path):
    assert set(imported(ROOT / "ahpa" / "analysis" / "policy.py")) == {"engine", "registry"}


def test_the_engine_holds_no_methods_name():
    pattern = re.compile(r"\b(i?repa|sara|sra2?|reg|dupa)\b", re.IGNORECASE)
    found = [f"{path.name}: {m.group()}" for path in (ROOT / "ahpa" / "engine").rglob("*.py")
             for m in pattern.finditer(path.read_text())]  # fmt: skip
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_style(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    assert text.count("\n") <= 300 or path.name in LONG_TABLES, "is it one thing?"
    assert not re.search("TO" + "DO|FIX" + "ME|NotImplemented" + "Error", text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and path.is_relative_to(ROOT / "ahpa"):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("name", ["ahpa", "ahpa.registry"])
def test_imports_are_light(name):
    code = f"import sys, {name}; print([m for m in ('torch', 'diffusers', 'timm', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
