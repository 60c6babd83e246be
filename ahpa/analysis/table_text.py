"""A table as text, CSV, Markdown or LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..registry.validation import is_number
from .table_results import Column, Estimate, Results, paper_value
from .tables import COSTS

LATEX = {  # characters that LaTeX reads as commands
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "–": "--",  # noqa: RUF001
}


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        title: Its title.
        header: Names of the columns.
        rows: One text for each column.
        notes: Lines under the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


# ---- what a table says ----------------------------------------------------------------------


def number_text(value: Any) -> str:
    """Format a printed figure; "-" for an empty cell."""
    if value is None:
        return "-"
    return f"{value:g}" if is_number(value) else str(value)


def estimate_text(found: Estimate | None) -> str:
    """Format our figure with its interval, such as "31.4 ± 0.6"."""
    if found is None:
        return "-"
    if found.margin is None:
        return f"{found.mean:.4g}"
    digits = 3 if found.margin < 0.1 else (2 if found.margin < 1 else 1)
    if 0 < found.margin < 0.001:
        return f"{found.mean:.3g} ± {found.margin:.1g}"
    return f"{found.mean:.{digits}f} ± {found.margin:.{digits}f}"


def column_names(column: Column, source: str) -> list[str]:
    """Return the heads of a figure's columns: the printed one and ours."""
    heads = [f"{column.printed}, {source}"] if column.printed else []
    return [*heads, f"{column.ours}, ours"] if column.ours else heads


def results_sheet(results: Results) -> Sheet:
    """Return our figures beside the printed ones."""
    table = results.plan.table
    source = "paper" if table.source.startswith("AHPA") else "printed"
    header = ["row", "config"]
    for column in results.columns:
        header += column_names(column, source)
    header.append("seeds")
    rows = []
    for number, row in enumerate(table.rows):
        cells = [row.name, row.config or "-"]
        seeds: set[int] = set()
        for column in results.columns:
            if column.printed:
                cells.append(number_text(paper_value(row, column)))
            if column.ours:
                found = results.estimate(number, column)
                cells.append(estimate_text(found))
                if column.ours not in COSTS:
                    seeds |= set(results.ours.get((number, column.ours), {}))
        cells.append(str(len(seeds)) if seeds else "-")
        rows.append(cells)
    return Sheet(title(results), header, rows, notes(results))


def title(results: Results) -> str:
    """Return the title of a table at a scale."""
    table, scale = results.plan.table, results.plan.scale
    return f"Table {table.name}: {table.title}. Scale {scale.name}: {scale.title}"


def notes(results: Results) -> list[str]:
    """Return what a reader must know of a table's figures."""
    plan = results.plan
    table, scale = plan.table, plan.scale
    found = list(order_notes(results))
    if any(e.margin is not None for e in estimates(results)):
        found.append("a ± b: mean over training seeds and its 95 % interval (Student's t)")
    if results.hashes:
        found.append(f"protocol: {', '.join(results.hashes)}")
    if table.compares and results.hashes:
        found.append(f"the rows differ by design in: {', '.join(table.compares)}")
    found += [f"UNLIKE PROTOCOLS, not comparable: {text}" for text in results.unlike]
    missing = [column.printed for column in results.columns if not column.ours]
    if missing:
        found.append(f"nothing of this scale stands beside: {', '.join(missing)}")
    found += scale.notes
    found.append(f"printed figures: {table.source}")
    found += [f"about them: {text}" for text in table.notes]
    found += [f"{row.name}: not run: {row.why_not}" for row in table.rows if row.why_not]
    return found


def estimates(results: Results) -> list[Estimate]:
    """Return all our figures."""
    found = [
        results.estimate(number, column)
        for number in range(len(results.plan.table.rows))
        for column in results.columns
        if column.ours
    ]
    return [own for own in found if own is not None]


def order_notes(results: Results) -> list[str]:
    """Say for every figure whether the paper's order holds here."""
    found = []
    for column in results.columns:
        if column.printed and column.ours:
            agreement = results.agreement(column)
            if agreement is not None:
                beside = (
                    "" if column.ours.lower() == column.printed.lower() else f" ({column.ours})"
                )
                found.append(f"order by {column.printed}{beside}: {agreement.words()}")
    return found


# ---- formats --------------------------------------------------------------------------------


def as_text(sheet: Sheet) -> str:
    """Format a table for a terminal; columns of numbers are aligned to the right."""
    lines = [list(sheet.header), *map(list, sheet.rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(sheet.header))]
    named = sum(
        1 for head in sheet.header if head in ("row", "config", "table", "title", "why not")
    )

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if n < named else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    body = [line(sheet.header), rule, *(line(row) for row in sheet.rows)]
    return "\n".join([sheet.title, "", *body, "", *sheet.notes]).rstrip() + "\n"


def as_markdown(sheet: Sheet) -> str:
    """Format a table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line(sheet.header), line(["---"] * len(sheet.header)), *map(line, sheet.rows)]
    listed = [f"- {note}" for note in sheet.notes]
    return "\n".join([f"**{sheet.title}**", "", *body, "", *listed]).rstrip() + "\n"


def as_csv(sheet: Sheet) -> str:
    """Format the cells of a table as CSV, without title and notes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([sheet.header, *sheet.rows])
    return buffer.getvalue()


def escaped(text: str) -> str:
    """Return text that LaTeX prints literally; characters it may not know become "?"."""
    known = "".join(LATEX.get(character, character) for character in text)
    return known.encode("ascii", "replace").decode()


def as_latex(sheet: Sheet) -> str:
    """Format a table as LaTeX that needs no package."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(escaped(cell) for cell in cells) + r" \\"

    columns = "ll" + "r" * (len(sheet.header) - 2)
    body = [line(sheet.header), r"\hline", *map(line, sheet.rows)]
    under = [rf"\par\noindent {escaped(note)}" for note in sheet.notes]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(sheet.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
            r"\footnotesize",
            *under,
            r"\end{table}",
            "",
        ]
    )


FORMATS: dict[str, Callable[[Sheet], str]] = {
    "text": as_text,
    "csv": as_csv,
    "markdown": as_markdown,
    "latex": as_latex,
}


def results_csv(results: Results) -> str:
    """Format our figures as CSV with a column each for mean, interval and number of seeds."""
    header = ["table", "scale", "row", "config"]
    for column in results.columns:
        header += [f"{column.printed} printed"] if column.printed else []
        if column.ours:
            parts = ("mean", "low", "high", "seeds")
            header += [f"{column.ours} {part}" for part in parts]
    header += ["protocols", "not run"]
    rows = []
    for number, row in enumerate(results.plan.table.rows):
        cells: list[Any] = [results.plan.table.name, results.plan.scale.name, row.name, row.config]
        for column in results.columns:
            if column.printed:
                cells.append(paper_value(row, column))
            if column.ours:
                cells += estimate_cells(results.estimate(number, column))
        rows.append([*cells, " ".join(results.hashes), row.why_not])
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return as_csv(Sheet("", header, shown, ()))


def estimate_cells(found: Estimate | None) -> list[Any]:
    """Return mean, low, high and number of seeds; None for what is not known."""
    if found is None:
        return [None, None, None, 0]
    mean, margin, seeds = found
    if margin is None:
        return [f"{mean:.6g}", None, None, seeds]
    return [f"{mean:.6g}", f"{mean - margin:.6g}", f"{mean + margin:.6g}", seeds]
