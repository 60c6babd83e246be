"""What the docs site makes from the tree: a mkdocs hook (mkdocs.yml names it), and its checker.

Pages may hold the marks below, which are replaced when the site is built, so that what they show
cannot go stale. Formulas become MathML, so a page needs no script and no request for them.

    <!-- excerpt: ahpa/engine/trainer.py Trainer.train -->   a function's or class's source
    <!-- source: configs/_base_/methods/repa.py -->          a whole file
    <!-- components: PRIORS -->                              what a registry holds
    <!-- configs: repa -->                                   the configs of a method
    <!-- rows: repa -->                                      the rows of the paper's tables
    <!-- own: repa -->                                       figures of the method's own paper

`python tools/make_docs.py --check site` looks for references of a built site to other hosts;
`--notebook` executes docs/quickstart.ipynb and stores its outputs.
"""

import argparse
import ast
import html
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
config_map = importlib.import_module("config_map")
DOCS = ROOT / "docs"
CONFIGS = ROOT / "configs"
ROOMS = (  # the rooms of the package, each a page of the API
    "registry",
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
    "engine",
    "analysis",
    "interop",
    "cli",
    "testing",
)
MIRRORED = {  # files of the tree that are pages of the site too
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "config_map.md",
    "ahpa/assets/tiny_vae/README.md": "cards/tiny_vae.md",
    "ahpa/assets/tiny_vit/README.md": "cards/tiny_vit.md",
    "examples/custom_prior/README.md": "examples/custom_prior.md",
    "examples/new_method/README.md": "examples/new_method.md",
    "examples/custom_extractor/README.md": "examples/custom_extractor.md",
}
MARK = re.compile(r"<!-- (\w+): ([^>]*?) -->")
LINK = re.compile(r"(?<!`)(!?)\[([^\]]*)\]\(([^)\s#:]*)(#[^)\s]*)?\)")
MATH = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


class Component(NamedTuple):
    """A registered component, as its source file shows it."""

    kind: str
    name: str
    module: str
    summary: str
    class_name: str


# ---- reading the tree without importing it --------------------------------------------------


@cache
def parse(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text())


@cache
def components() -> tuple[Component, ...]:
    """List everything that is registered in ahpa."""
    found = []
    for path in sorted((ROOT / "ahpa").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in parse(path).body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            for decorator in node.decorator_list:
                registered = _registration(decorator, node.name)
                if registered:
                    kind, name = registered
                    summary = _summary(ast.get_docstring(node) or "")
                    found.append(Component(kind, name, module, summary, node.name))
    return tuple(found)


def _registration(decorator: ast.expr, default: str) -> tuple[str, str] | None:
    """Return (registry, name) of a `@KIND.register_module(...)`, or None."""
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return None
    if decorator.func.attr != "register_module" or not isinstance(decorator.func.value, ast.Name):
        return None
    for keyword in decorator.keywords:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return decorator.func.value.id, str(keyword.value.value)
    return decorator.func.value.id, default


def _summary(docstring: str) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)\]])\.\s", paragraph)[0]
    return sentence.rstrip(".:") + "."


def excerpt(path: Path, name: str) -> str:
    """Return the source of a function or class (dotted for a method) without its docstrings."""
    nodes: Any = parse(path).body
    node: Any = None
    for part in name.split("."):
        named = [n for n in nodes if getattr(n, "name", None) == part]
        if not named:
            raise ValueError(f"{path}: there is no {name}")
        node = named[0]
        nodes = node.body
    lines = path.read_text().splitlines()
    hidden = _docstring_lines(node)
    shown = [
        line
        for number, line in enumerate(lines[node.lineno - 1 : node.end_lineno], node.lineno)
        if number not in hidden
    ]
    indent = len(shown[0]) - len(shown[0].lstrip())
    return "\n".join(line[indent:] for line in shown)


def _docstring_lines(node: ast.AST) -> set[int]:
    """List the lines of the docstrings of a node and everything in it."""
    found: set[int] = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part):
            text = part.body[0]
            if len(part.body) > 1:
                found |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return found


# ---- tables ---------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def methods_of(name: str) -> list[str]:
    """Return the methods in a config's name: two for ahpa-repa_sit-b, "sit" for sit-b."""
    first = name.split("_")[0]
    if first.startswith("static") or re.fullmatch(r"(sit|dit)-\w+|mmdit", first):
        return [first.split("-")[0]]
    return first.split("-")


@cache
def shipped() -> dict[str, str]:
    """Return {config: first line of its docstring}."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        found[path.stem] = (ast.get_docstring(parse(path)) or "").split("\n")[0]
    return found


def of_method(method: str) -> list[str]:
    """List the configs of a method, its combinations with others included."""
    return [name for name in shipped() if method in methods_of(name)]


def config_link(name: str) -> str:
    """Link a config; the @ stands for the root of the tree (see `relink`)."""
    return f"[`{name}`](@configs/{name}.py)"


def configs_table(method: str) -> str:
    """Format the table of a method's configs."""
    rows = [[config_link(name), shipped()[name].replace("|", "\\|")] for name in of_method(method)]
    if not rows:
        return "*There is no config of this method yet.*"
    return table(["config", "what it is"], rows)


def rows_table(method: str) -> str:
    """Format the rows of AHPA's tables that lead to a method's configs."""
    wanted = set(of_method(method))
    rows = []
    paths = (CONFIGS / "tables").glob("table_*.json")
    for path in sorted(paths, key=lambda path: (len(path.stem), path.stem)):
        content = json.loads(path.read_text())
        for row in content["rows"]:
            name = Path(row["config"]).stem
            if name not in wanted:
                continue
            label = config_map.row_name(row).replace("|", "\\|")
            measured = config_map.figures(row.get("measured", {})) or "–"  # noqa: RUF001
            printed = config_map.printed(row)
            rows.append([content["table"], label, config_link(name), printed, measured])
    if not rows:
        return "*The tables of the AHPA paper have no row for it.*"
    return table(["table", "row", "config", "printed", "measured here"], rows)


def own_table(method: str) -> str:
    """Format the figures that a method's own paper gives, from the headers of its configs."""
    rows = []
    for name in of_method(method):
        header = (ast.get_docstring(parse(CONFIGS / f"{name}.py")) or "").replace("\n    ", " ")
        for line in re.findall(r"^Paper: (.*)", header, flags=re.MULTILINE):
            if not line.startswith("AHPA") and "not a row" not in line:
                rows.append([config_link(name), line.replace("|", "\\|")])
    if not rows:
        return "*No config quotes a figure of the method's own paper.*"
    return table(["config", "printed"], rows)


def components_table(kind: str) -> str:
    """Format what a registry holds."""
    chosen = sorted((c for c in components() if c.kind == kind), key=lambda c: c.name)
    if not chosen:
        raise ValueError(f"nothing is registered in {kind}")
    rows = []
    for found in chosen:
        place = f"{found.module}.{found.class_name}"
        rows.append([f"[`{found.name}`][{place}]", found.summary.replace("|", "\\|")])
    return table(["type", "what it is"], rows)


def render(mark: str, argument: str) -> str:
    """Return what replaces a mark."""
    if mark == "excerpt":
        path, name = argument.split()
        return f'```python title="{path}"\n{excerpt(ROOT / path, name)}\n```'
    if mark == "source":
        return f'```python title="{argument}"\n{(ROOT / argument).read_text().strip()}\n```'
    makers = {
        "components": components_table,
        "configs": configs_table,
        "rows": rows_table,
        "own": own_table,
    }
    if mark not in makers:
        raise ValueError(f"there is no mark {mark!r}; valid: excerpt, source, {', '.join(makers)}")
    return makers[mark](argument)


# ---- pages ----------------------------------------------------------------------------------


def modules(room: str) -> list[str]:
    """List the public modules of a room that exist."""
    folder = ROOT / "ahpa" / room
    names = sorted(path.stem for path in folder.glob("*.py"))
    return [f"ahpa.{room}.{name}" for name in names if not name.startswith("_")]


def api_page(room: str) -> str:
    """Return the page of a room: its modules with their classes and functions."""
    about = ast.get_docstring(parse(ROOT / "ahpa" / room / "__init__.py")) or ""
    parts = [f"# ahpa.{room}", about.strip()]
    parts += [f"::: {module}" for module in modules(room)]
    return "\n\n".join(parts) + "\n"


def config_page(path: Path) -> str:
    """Return the page of a config: its docstring, its bricks and its source."""
    title = (ast.get_docstring(parse(path)) or path.stem).split("\n")[0]
    name = path.relative_to(CONFIGS).with_suffix("").as_posix()
    bricks = []
    for node in parse(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_":
            bricks = ast.literal_eval(node.value)
    links = []
    for brick in [bricks] if isinstance(bricks, str) else bricks:
        target = (path.parent / brick).resolve()
        shown = target.relative_to(CONFIGS).with_suffix("").as_posix()
        here = os.path.relpath(target.with_suffix(".md"), path.parent)
        links.append(f"[`{shown}`]({here})")
    over = f"\n\nBricks: {', '.join(links)}." if links else ""
    source = path.read_text().strip()
    front = "---\nsearch:\n  exclude: true\n---\n"
    return f"{front}# {name}\n\n{title}{over}\n\n```python\n{source}\n```\n"


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: text, code, and the outputs that it holds."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = ""
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![output of the cell](data:image/png;base64,{picture})")
            else:
                printed += "".join(output.get("text", data.get("text/plain", "")))
        if printed.strip():
            parts.append(f'```text title="output"\n{printed.rstrip()}\n```')
    return "\n\n".join(parts) + "\n"


def generated_pages() -> dict[str, tuple[str, Path]]:
    """Return {page: (text, file that it comes from)} of all pages that are not in docs/."""
    pages = {}
    for room in ROOMS:
        if (ROOT / "ahpa" / room / "__init__.py").exists():
            pages[f"api/{room}.md"] = (api_page(room), ROOT / "ahpa" / room / "__init__.py")
    for path in sorted(CONFIGS.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix(".md").as_posix()
        pages[name] = (config_page(path), path)
    for file, page in MIRRORED.items():
        if (ROOT / file).exists():
            pages[page] = ((ROOT / file).read_text(), ROOT / file)
    pages["quickstart.md"] = (notebook_page(DOCS / "quickstart.ipynb"), DOCS / "quickstart.ipynb")
    return pages


def site_page(path: Path) -> str | None:
    """Return the page of the site that shows a file of the tree, or None."""
    if path.suffix == ".ipynb" and path.parent == DOCS:
        return path.relative_to(DOCS).with_suffix(".md").as_posix()
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    if name in MIRRORED:
        return MIRRORED[name]
    if name.startswith("configs/") and path.suffix == ".py":
        return path.relative_to(ROOT).with_suffix(".md").as_posix()
    return None


def relink(text: str, page: str, source: Path) -> str:
    """Turn links between files of the tree into links between pages of the site.

    Args:
        text: Markdown.
        page: Page of the site, such as "methods/repa.md".
        source: File that the text comes from; its links are relative to it, or to the root of the
            tree if they begin with @.
    """

    def replace(found: re.Match[str]) -> str:
        picture, label, target, anchor = found.groups(default="")
        if not target:
            return found[0]
        folder = ROOT if target.startswith("@") else source.parent
        path = Path(os.path.normpath(folder / target.removeprefix("@")))
        goal = site_page(path)
        if goal is None:  # a file that the site does not show
            return label if label.startswith("`") else f"{label} (`{path.relative_to(ROOT)}`)"
        return f"{picture}[{label}]({os.path.relpath(goal, Path(page).parent)}{anchor})"

    parts = re.split(r"(```.*?\n```|~~~.*?\n~~~)", text, flags=re.DOTALL)
    for number in range(0, len(parts), 2):  # the others are code
        parts[number] = LINK.sub(replace, parts[number])
    return "".join(parts)


def with_math(content: str) -> str:
    """Replace the formulas of a page's HTML by MathML."""
    from latex2mathml.converter import convert

    def replace(found: re.Match[str]) -> str:
        kind, formula = found.groups()
        display = "block" if kind == "div" else "inline"
        return convert(html.unescape(formula).strip(), display=display)

    return MATH.sub(replace, content)


# ---- the hook -------------------------------------------------------------------------------


_SOURCES: dict[str, Path] = {}  # of the generated pages


def on_config(config: Any) -> Any:
    """Leave out of the navigation what the tree does not have (mkdocs)."""
    generated = generated_pages()

    def kept(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: kept(inner) for title, inner in entry.items()}
        if isinstance(entry, list):
            chosen = [kept(inner) for inner in entry]
            return [inner for inner in chosen if inner is not None]
        room = re.fullmatch(r"api/(\w+)\.md", entry)
        missing = room and room[1] != "index" and entry not in generated
        return None if missing else entry

    config.nav = kept(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (mkdocs)."""
    from mkdocs.structure.files import File

    for page, (text, source) in generated_pages().items():
        _SOURCES[page] = source
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the marks and the links of a page (mkdocs)."""
    name = page.file.src_uri
    text = MARK.sub(lambda found: render(*found.groups()), markdown)
    source = _SOURCES.get(name, DOCS / name)
    if name.startswith("configs/"):
        return text  # made with links of the site
    return relink(text, name, source)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Replace the formulas of a page (mkdocs)."""
    return with_math(content)


# ---- the checker ----------------------------------------------------------------------------

LOADED = (  # what makes a browser fetch something
    re.compile(
        r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(//|https?:)"""
    ),
    re.compile(r"""<link\b(?![^>]*\brel=["']?canonical)[^>]*\bhref=["']?(//|https?:)"""),
    re.compile(r"""@import\s+(?:url\()?["']?(//|https?:)"""),
    re.compile(r"""\burl\(["']?(//|https?:)"""),
)


def external_references(site: Path) -> Iterator[str]:
    """Yield every reference of a built site that a browser would fetch from another host."""
    for path in sorted(site.rglob("*")):
        if path.suffix not in (".html", ".css"):
            continue
        content = path.read_text()
        for pattern in LOADED:
            for found in pattern.finditer(content):
                yield f"{path.relative_to(site)}: {content[found.start() : found.end() + 60]!r}"


# ---- the notebook ---------------------------------------------------------------------------


def run_notebook(path: Path) -> None:
    """Execute a notebook in a folder of its own and store its outputs, without paths."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type != "stream" or output.name == "stdout"
            ]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # a twin of the PNG
    path.write_text(nbformat.writes(notebook).replace(f"{folder}/", "") + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Check a built site, or run the notebook."""
    parser = argparse.ArgumentParser(description="Check a built site, or run the notebook.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--check", type=Path, metavar="SITE", help="refuse references to other hosts")
    task.add_argument("--notebook", action="store_true", help="run docs/quickstart.ipynb anew")
    args = parser.parse_args(arguments)
    if args.notebook:
        run_notebook(DOCS / "quickstart.ipynb")
        return 0
    found = list(external_references(args.check))
    for line in found:
        print(line, file=sys.stderr)
    pages = len(list(args.check.rglob("*.html")))
    if not pages:
        print(f"{args.check} holds no page", file=sys.stderr)
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
