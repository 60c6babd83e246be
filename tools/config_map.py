"""Write configs/README.md, the map of the configs: python tools/config_map.py [--check].

Methods by backbones, what is varied, and each row of the paper's tables with its config, printed
and measured figures. --check writes nothing and exits with 1 if the file is out of date.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = (
    "",
    "ahpa",
    "repa",
    "irepa",
    "sara",
    "sra",
    "sra2",
    "reg",
    "dupa",
    "layersync",
    "dispersive",
    "deltafm",
    "haste",
    "selfflow",
    "dtsas",
    "tread",
)
BACKBONES = (
    "sit-s",
    "sit-b",
    "sit-l",
    "sit-xl",
    "sit-xl 512 px",
    "dit-b",
    "dit-l",
    "dit-xl",
    "dit-xl 512 px",
    "mmdit",
)
USUAL_LENGTHS = (400_000, 150_000, None)  # of the recipes, ImageNet and COCO; None for a cost
NAME = r"(?:(.+?)_)?((?:sit|dit)-[a-z]+|mmdit)(?:_(.+))?"  # of a config
INTRO = """# The map of the configs

Written by `python tools/config_map.py` from the configs and `tables/*.json`; do not edit.
A config names its bricks (`_base_/backbones`, `_base_/methods`, `_base_/recipes`), puts the method
on the backbone at its block, and changes one thing: see [docs/configs.md](../docs/configs.md).
"""


class Entry(NamedTuple):
    """A config by its parts: `{method}_{backbone}[_{knob}].py`."""

    name: str
    method: str
    backbone: str
    knob: str
    blocks: tuple[int, ...]
    title: str


def read_entry(path: Path) -> Entry:
    """Read the parts of a config from its name, its first line and its `tap` assignments."""
    parts = re.fullmatch(NAME, path.stem)
    if parts is None:
        raise ValueError(f"{path.name}: expected {{method}}_{{backbone}}-{{size}}[_{{knob}}].py")
    method, backbone, knob = parts.groups(default="")
    if knob.split("_")[0] == "512px":
        backbone, knob = f"{backbone} 512 px", knob.removeprefix("512px").removeprefix("_")
    text = path.read_text()
    blocks = tuple(int(block) for block in re.findall(r"\.?\btap ?= ?(\d+)", text))
    return Entry(path.stem, method, backbone, knob, blocks, read_header(path).splitlines()[0])


def read_header(path: Path) -> str:
    """Read the docstring of a config, each field on one line."""
    header = ast.get_docstring(ast.parse(path.read_text()))
    if header is None:
        raise ValueError(f"{path.name}: a config begins with a docstring")
    return header.replace("\n    ", " ")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def link(name: str, text: str = "") -> str:
    """Format a link to a config."""
    return f"[{text or name}]({name}.py)"


def label(entry: Entry) -> str:
    """Return what the table of methods shows of a config: its blocks, or what sets it apart."""
    return entry.knob or " and ".join(map(str, entry.blocks)) or "config"


def method_table(entries: list[Entry]) -> str:
    """Format the table of methods by backbones; a cell shows the aligned block."""
    methods = sorted(
        {entry.method for entry in entries},
        key=lambda name: (METHODS.index(name) if name in METHODS else len(METHODS), name),
    )
    main = [entry for entry in entries if entry.knob in ("", "matched")]
    columns = [*BACKBONES, *sorted({entry.backbone for entry in main} - set(BACKBONES))]
    rows = []
    for method in methods:
        cells = []
        for backbone in columns:
            here = [e for e in main if (e.method, e.backbone) == (method, backbone)]
            cells.append(", ".join(link(e.name, label(e)) for e in here))
        rows.append([f"`{method}`" if method else "none", *cells])
    return table(["method", *columns], rows)


def variation_table(entries: list[Entry]) -> str:
    """Format the configs that change one thing of a config of the table above."""
    varied = [entry for entry in entries if entry.knob not in ("", "matched")]
    rows = [[link(entry.name), entry.title] for entry in varied]
    return table(["config", "what it is"], rows)


def figures(values: dict) -> str:
    """Format the figures of a row; what the paper leaves empty is left out."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def row_name(row: dict) -> str:
    """Return the name of a row, with its epochs if it is of another length than the recipes."""
    if row["iterations"] == 0:
        return row["row"] + " (zero-shot)"
    epochs = "" if row["iterations"] in USUAL_LENGTHS else f" ({row['epochs']} epochs)"
    return row["row"] + epochs


def printed(row: dict) -> str:
    """Format what a row prints, and what is known to be otherwise."""
    text = figures(row["paper"]) or "no figure printed"
    if "published" in row:
        text += f" (in its own paper {figures(row['published'])})"
    if "alternative" in row:
        text += f" (elsewhere in AHPA {figures(row['alternative'])})"
    if not row.get("reproducible", True):
        text += " (no public autoencoder reproduces it)"
    return text


def commands(row: dict) -> str:
    """Return the options that train as long as a row and draw its guided samples, if any."""
    parts = []
    if row["iterations"] not in (*USUAL_LENGTHS, 0):
        parts.append(f"train with --max-iters {row['iterations']}")
    if row["cfg_scale"] not in (None, 1.0):
        options = (
            f"--sampler {row['sampler']} --steps {row['steps']} --cfg-scale {row['cfg_scale']:g}"
        )
        low, high = row["cfg_interval"]
        if (low, high) != (0, 1):
            options += f" --cfg-interval {low:g} {high:g}"
        if "cfg_channels" in row:
            options += f" --cfg-channels {row['cfg_channels']}"
        assumed = " (guidance assumed)" if row.get("guidance") == "assumed" else ""
        parts.append(f"sample with {options}{assumed}")
    return ", ".join(parts)


def row_line(content: dict, row: dict) -> str:
    """Return the line of a config's header that quotes a row of a table."""
    epochs = row_name(row).removeprefix(row["row"])
    line = f'Paper: AHPA Table {content["table"]}, row "{row["row"]}"{epochs}: {printed(row)}.'
    how = commands(row)
    return f"{line} {how[0].upper()}{how[1:]}." if how else line


def paper_table(path: Path) -> str:
    """Format one table of the paper: row, config, printed and measured figures."""
    content = json.loads(path.read_text())
    if not content["rows"]:
        return ""  # tables A.8 and A.9 measure nothing
    rows = []
    for row in content["rows"]:
        cells = [row_name(row), link(Path(row["config"]).stem)]
        cells += [printed(row), figures(row.get("measured", {}))]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    head = f"### Table {content['table']}: {content['title']}\n\n"
    return head + table(["row", "config", "printed", "measured"], rows)


def own_table() -> str:
    """Format the figures that a method's own paper or code gives, as the configs' headers say."""
    rows = []
    for path in sorted(CONFIGS.glob("*.py")):
        for line in re.findall(r"^Paper: (.*)", read_header(path), flags=re.MULTILINE):
            if re.match(r"the method's(?! figure)|[DS]iT \(", line):
                rows.append([link(path.stem), line, ""])
    return table(["config", "printed", "measured"], rows)


def config_map() -> str:
    """Return the text of configs/README.md."""
    entries = [read_entry(path) for path in sorted(CONFIGS.glob("*.py"))]
    tables = sorted(
        (CONFIGS / "tables").glob("table_*.json"),
        key=lambda path: (len(path.stem), path.stem),  # 1 .. 7 before B.10 .. I.21
    )
    parts = [
        INTRO,
        "## Methods by backbones\n\nThe number is the aligned block; `matched` keeps it and takes "
        "AHPA's learning rate and clipping.\n",
        method_table(entries),
        "## Variations\n",
        variation_table(entries),
        "## The paper's tables\n\n`measured` is empty until a run of that row is reported "
        "(`measured` in `tables/*.json`).\n",
        *filter(None, map(paper_table, tables)),
        "## What the methods' own papers print\n",
        own_table(),
    ]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write the map, or compare it with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    args = parser.parse_args(arguments)
    target, text = CONFIGS / "README.md", config_map()
    if not args.check:
        target.write_text(text)
    elif not target.exists() or target.read_text() != text:
        print(f"{target} is out of date: run python tools/config_map.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
