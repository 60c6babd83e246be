"""Write a report on runs as one HTML page:
ahpa report RUN... [--out report.html]
ahpa report --group NAME RUN... --group NAME RUN... [--out report.html]

RUN is a work dir. Runs whose configs differ only in the seed, the length, hooks and paths are seeds
of one method; --group names the methods instead. The page holds verdicts, figures, curves with
seeds as bands, samples at equal steps, routers, diagnostics (`ahpa analyze`), cost, tables, and in
what configs and protocols differ. It loads nothing from the network. A run may still be going on;
what is missing is said on the page. See docs/report.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.errors import UserError, nearest
from ..registry.validation import integer
from .common import (
    PAGES,
    add_methods,
    check_methods,
    make_parser,
    refuse_empty,
    refuse_ending,
    run_command,
)

if TYPE_CHECKING:
    from ..analysis.report.methods import Method
    from ..analysis.report.page import Report


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "report")
    add = parser.add_argument
    add_methods(parser, "work dirs")
    add("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write")
    add("--title", metavar="TEXT", help="title; default the methods' names")
    add("--baseline", metavar="NAME", help="the method to compare with; default the first")
    add("--band", choices=("range", "stderr"), default="range", help="what bands over seeds show")
    add("--steps", type=int, default=6, metavar="N", help="steps of sample grids; default 6")
    add("--table", type=Path, action="append", default=[], metavar="FILE", help="a .csv or .json")
    add(
        "--analysis",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="results of `ahpa analyze` that are not in RUN/analysis",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check(args)

    from ..analysis.report.page import write_report

    report = make_report(args)
    size = write_report(report, args.out)
    for item in report.runs:
        for note in item.notes:
            print(f"{item.name}: {note}")
    print(f"{args.out} ({size / 1e6:.1f} MB)")
    return 0


def check(args: argparse.Namespace) -> None:
    """Check the options before anything is read. Raises UserError for a mistake."""
    integer("--steps", args.steps, least=1)
    refuse_empty(title=args.title, baseline=args.baseline)
    refuse_ending("--out", args.out, PAGES)
    check_methods("report", args)


def make_report(args: argparse.Namespace) -> "Report":
    """Read everything that the page shows. Raises UserError for a mistake."""
    from ..analysis.report.page import Report
    from ..analysis.report.runs import read_analyses, read_table

    methods = find_methods(args)
    if args.baseline is not None:
        names = [method.name for method in methods]
        if args.baseline not in names:
            raise UserError(
                f"--baseline: no method {args.baseline!r}{nearest(args.baseline, names)}"
            )
    notes: list[str] = []
    analyses = []
    for folder in args.analysis:
        if not folder.is_dir():
            raise UserError(f"--analysis: {folder} is no folder.")
        analyses += read_analyses(folder, notes)
    return Report(
        methods=methods,
        title=args.title,
        baseline=args.baseline,
        band=args.band,
        steps=args.steps,
        tables=[read_table(path) for path in args.table],
        analyses=analyses,
        notes=notes,
    )


def find_methods(args: argparse.Namespace) -> "list[Method]":
    """Read the runs and sort them into methods."""
    from ..analysis.report.methods import make_method, sort_runs
    from ..analysis.report.runs import read_runs

    if not args.group:
        return sort_runs(read_runs(args.runs))
    methods = [make_method(name, read_runs(paths)) for name, *paths in args.group]
    seen: dict[Path, str] = {}
    for method in methods:
        for item in method.runs:
            other = seen.setdefault(item.path.resolve(), method.name)
            if other != method.name:
                raise UserError(f"--group: {item.path} is in both {other!r} and {method.name!r}.")
    return methods
