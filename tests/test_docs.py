"""The docs say what is so: their examples run, their figures and tables follow from the tree."""

import functools
import importlib
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from support.registered import shipped

from ahpa.engine import config as configs
from ahpa.registry import ALL

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))
make_docs = importlib.import_module("make_docs")
make_figures = importlib.import_module("make_figures")

WRITE = sorted((DOCS / "write").glob("*.md"))
PACKAGE = "my_package"  # by this name the pages' configs import the examples


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


class Page:
    """A page whose blocks are executed in order, each once, in the module `my_package`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = python_blocks(path.read_text())
        self.module = types.ModuleType(PACKAGE)
        self.done = 0

    def run(self, number: int, folder: Path) -> None:
        sys.modules[PACKAGE] = self.module
        while self.done <= number:
            block, index = self.blocks[self.done], self.done
            self.done += 1
            if block.startswith("_base_"):
                file = folder / "page.py"
                file.write_text(block)
                configs.check_config(configs.load(file))
            else:
                code = compile(block, f"{self.path.name}, block {index}", "exec")
                exec(code, self.module.__dict__)


PAGES = {path.stem: Page(path) for path in WRITE}
CASES = [(name, number) for name, page in PAGES.items() for number in range(len(page.blocks))]


@pytest.fixture(scope="module", autouse=True)
def registries():
    """The examples are registered for this file only."""
    before = {}
    for name, registry in ALL.items():
        registry.import_from_location()
        before[name] = dict(registry.module_dict)
    yield
    for name, registry in ALL.items():
        registry.module_dict.clear()
        registry.module_dict.update(before[name])
    sys.modules.pop(PACKAGE, None)


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{n}-{i}" for n, i in CASES])
def test_the_examples_of_the_pages_run(name, number, tmp_path):
    torch.manual_seed(0)
    PAGES[name].run(number, tmp_path)


def test_there_is_a_page_for_every_kind_of_component():
    text = (DOCS / "write" / "index.md").read_text()
    not_ours = {"OPTIMIZERS", "PARAM_SCHEDULERS", "VISUALIZERS", "VISBACKENDS"}  # mmengine's kinds
    for kind in set(ALL) - not_ours:
        assert f"`{kind}`" in text, f"docs/write/index.md does not name {kind}"


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ("index", "hook")])
def test_every_page_checks_its_example(name):
    text = PAGES[name].path.read_text()
    assert "from ahpa.testing import check_" in text
    unnamed = ("guidance", "extractor", "metric")  # kinds that no config names
    assert "_base_ = " in text or name in unnamed


# ---- what is generated ----------------------------------------------------------------------


def markdown_pages():
    paths = [*DOCS.glob("*.md"), *DOCS.glob("methods/*.md"), *DOCS.glob("write/*.md")]
    return sorted(path for path in paths)


@pytest.mark.parametrize(
    "path", markdown_pages(), ids=lambda path: path.relative_to(DOCS).as_posix()
)
def test_the_marks_of_a_page_can_be_rendered(path):
    for mark, argument in make_docs.MARK.findall(path.read_text()):
        assert make_docs.render(mark, argument)


@pytest.mark.parametrize("kind", sorted({c.kind for c in make_docs.components()}))
def test_the_components_are_those_that_are_registered(kind):
    listed = {c.name for c in make_docs.components() if c.kind == kind}
    assert listed == set(shipped(ALL[kind])) & set(ALL[kind].module_dict)


def test_every_method_has_a_page_and_a_figure():
    methods = {part for name in make_docs.shipped() for part in make_docs.methods_of(name)}
    for method in methods - {"static"}:  # AHPA without its router; on AHPA's page
        assert (DOCS / "methods" / f"{method}.md").exists(), method
        assert method in make_figures.METHODS, method


def test_the_figures_are_up_to_date():
    assert make_figures.main(["--check"]) == 0, "run python tools/make_figures.py"


def test_every_row_of_the_tables_is_on_a_method_page():
    shown = set()
    for path in (DOCS / "methods").glob("*.md"):
        for mark, argument in make_docs.MARK.findall(path.read_text()):
            if mark == "rows":
                shown |= set(make_docs.of_method(argument))
    for path in (ROOT / "configs" / "tables").glob("table_*.json"):
        for row in json.loads(path.read_text())["rows"]:
            assert Path(row["config"]).stem in shown, f"{path.name}: {row['row']}"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("../runs.md", "[x](../runs.md)"),
        ("../../configs/README.md", "[x](../config_map.md)"),
        ("../../configs/sit-b.py", "[x](../configs/sit-b.md)"),
        ("../../configs/_base_/methods/repa.py", "[x](../configs/_base_/methods/repa.md)"),
        ("../quickstart.ipynb", "[x](../quickstart.md)"),
        ("../../tests/conftest.py", "x (`tests/conftest.py`)"),
        ("../step.md#the-loop", "[x](../step.md#the-loop)"),
        ("@configs/sit-b.py", "[x](../configs/sit-b.md)"),
    ],
)
def test_links_between_files_become_links_between_pages(target, expected):
    source = DOCS / "methods" / "repa.md"
    assert make_docs.relink(f"[x]({target})", "methods/repa.md", source) == expected


def test_links_in_code_stay():
    text = "```text\n[x](../runs.md)\n```\n"
    assert make_docs.relink(text, "methods/repa.md", DOCS / "methods" / "repa.md") == text


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        '<img src="http://a.example/b.png">',
        "<style>@import url('https://a.example/b.css')</style>",
    ],
)
def test_a_site_that_asks_other_hosts_is_refused(page, tmp_path):
    (tmp_path / "index.html").write_text('<a href="https://arxiv.org/abs/1">fine</a>')
    assert make_docs.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "other.html").write_text(page)
    assert make_docs.main(["--check", str(tmp_path)]) == 1


def test_the_navigation_names_files_that_exist():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^\s+- (?:[^\n:]+: )?([\w/]+\.md)$", text, flags=re.MULTILINE)
    generated = make_docs.generated_pages()
    assert len(listed) > 40
    for page in listed:
        later = re.fullmatch(r"api/(\w+)\.md", page)  # a room may be missing: see on_config
        room = later is not None and later[1] in make_docs.ROOMS
        assert room or (DOCS / page).exists() or page in generated, page


# ---- the notebook ---------------------------------------------------------------------------


@functools.cache
def notebook():
    return json.loads((DOCS / "quickstart.ipynb").read_text())


def test_the_quick_start_runs(tmp_path, monkeypatch):
    """All cells in this process, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "quickstart", "display": lambda *values: None}
    torch.manual_seed(0)
    for number, cell in enumerate(notebook()["cells"]):
        if cell["cell_type"] == "code":
            exec(
                compile("".join(cell["source"]), f"quickstart.ipynb, cell {number}", "exec"), names
            )
    assert names["history"][-1] < names["history"][0]


def test_the_quick_start_holds_its_outputs():
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"])
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            shown = json.dumps(output)
            assert str(ROOT) not in shown and "/tmp/" not in shown
