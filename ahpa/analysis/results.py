"""One way to write what a diagnostic found: a picture as PNG and SVG, its figures as CSV, and all
of it as JSON with the record of how it came about."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "ahpa-analysis-1"
DPI = 150
COLOURS = (  # told apart with any kind of colour vision (Okabe and Ito)
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6B6B6B",
    "#000000",
)
STYLES = ("-", "--", ":", "-.")
STYLE: Any = {  # of matplotlib, whose own types list every key
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "ahpa",
    "svg.fonttype": "path",
}
TIME = "t (0 data, 1 noise)"


@dataclass(frozen=True)
class Finding:
    """What a diagnostic found.

    Attributes:
        name: Name of the files.
        rows: The figures, one dict a row of the CSV; all have the same keys.
        figure: The picture.
        summary: Further figures, for the JSON.
        notes: What a person should know, one line each.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    figure: "Figure"
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def write(self, folder: Path, record: Mapping[str, Any]) -> list[Path]:
        """Write NAME.png, .svg, .csv and .json.

        Args:
            folder: Where to.
            record: How the figures came about: runs, iterations, weights, images, seed.

        Raises:
            UserError: If a file cannot be written.
        """
        whole = {
            "format": FORMAT,
            "kind": self.name,
            "record": plain(record),
            "notes": list(self.notes),
            "summary": plain(self.summary),
            "rows": plain(list(self.rows)),
        }
        contents = {
            "png": picture(self.figure, "png"),
            "svg": picture(self.figure, "svg"),
            "csv": table(self.rows).encode(),
            "json": json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n",
        }
        paths = []
        for suffix, data in contents.items():
            path = Path(folder) / f"{self.name}.{suffix}"
            write_file(path, data)
            paths.append(path)
        return paths


def plain(value: Any) -> Any:
    """Return plain values for JSON; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        shown = [f"{value:.6g}" if isinstance(value, float) else value for value in row.values()]
        writer.writerow(shown)
    return buffer.getvalue()


# ---- pictures -------------------------------------------------------------------------------


def new_figure(width: float, height: float, title: str = "") -> "Figure":
    """Make an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def styled() -> Any:
    """Return the context in which pictures are drawn and written."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def picture(figure: "Figure", kind: str) -> bytes:
    """Return a figure as PNG or SVG; equal figures give equal files."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with styled():
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def look(number: int) -> dict[str, Any]:
    """Return colour and line style of the line of this number."""
    count = len(COLOURS)
    return {"color": COLOURS[number % count], "linestyle": STYLES[number // count % len(STYLES)]}


def heat_map(
    axis: "Axes",
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    low: float | None = None,
    high: float | None = None,
    digits: int = 2,
) -> None:
    """Draw a matrix as colours with its numbers written in.

    Args:
        axis: Where to draw.
        values: [rows][columns].
        rows: Labels of the rows, top to bottom.
        columns: Labels of the columns.
        title: Title of the plot.
        low: Value of the darkest colour; None for the smallest.
        high: Value of the brightest colour; None for the largest.
        digits: Digits behind the point.
    """
    image = axis.imshow(values, aspect="auto", vmin=low, vmax=high, cmap="viridis")
    axis.grid(False)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.set_title(title)
    bottom, top = image.get_clim()
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            share = (value - bottom) / ((top - bottom) or 1)
            text = f"{value:.{digits}f}" if math.isfinite(value) else "-"
            colour = "black" if share > 0.55 else "white"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
