"""Compare methods over several runs, and say whether the difference is decided:
ahpa compare RUN... [--metric fid]
ahpa compare --group NAME RUN... --group NAME RUN... [--metric fid]

RUN is a work dir (with evaluations/*.json), a folder of results or a result of `ahpa evaluate`. The
first form sorts the results by the method in their provenance; the second one names the groups, for
variants of one method. The first method, or --baseline, is what the others are compared with.

The verdict rests on training seeds: one run of each method is always inconclusive. False verdicts
stay below 5 % also if you add training seeds one by one and look each time, until it is decided.
--planned N is for a number of training seeds that you fix before the first look: one look, with
fewer runs. See docs/verdicts.md.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.errors import UserError, nearest
from ..registry.validation import integer, number
from .common import add_methods, check_methods, make_parser, refuse_ending, run_command

if TYPE_CHECKING:
    from ..evaluation.protocol import Difference
    from ..evaluation.results import FoundResult
    from ..evaluation.verdict import Comparison

FORMATS = (".md", ".csv", ".json")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "compare")
    add = parser.add_argument
    add_methods(parser, "results of at least two methods")
    add("--metric", default="fid", help="the figure, default fid")
    add("--better", choices=("higher", "lower"), help="direction of a figure that is not ours")
    add("--baseline", metavar="NAME", help="the method to compare with; default the first")
    add("--iteration", type=int, metavar="N", help="which results, if the runs have several")
    add("--protocol", metavar="HASH", help="which results: the beginning of a protocol's hash")
    add("--scale", choices=("relative", "absolute"), default="relative", help="of differences")
    add("--effect", type=float, default=0.03, metavar="X", help="worth finding; default 0.03")
    add("--planned", type=int, metavar="N", help="training seeds of each, fixed beforehand")
    add("--force", action="store_true", help="compare in spite of different protocols")
    add("--json", action="store_true", help="print JSON")
    add("--out", type=Path, metavar="FILE", help="also write a .md, .csv or .json file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check(args)

    from ..evaluation.results import figures_by_seed
    from ..evaluation.verdict import compare_methods
    from ..evaluation.verdict_text import as_csv, as_json, as_markdown, as_text
    from ..registry.files import write_file

    groups = find_groups(args)
    found = check_protocols(groups, args.force)
    comparison = compare_methods(
        {name: figures_by_seed(name, items, args.metric) for name, items in groups.items()},
        metric=args.metric,
        better=args.better,
        scale=args.scale,
        effect=args.effect,
        planned=args.planned,
    )
    unlike = list(dict.fromkeys(str(difference) for difference in found))

    def whole_json(comparison: "Comparison") -> str:
        return as_json(comparison, protocol_differences=unlike)

    writers: dict[str, Callable[[Comparison], str]] = {
        ".md": as_markdown,
        ".csv": as_csv,
        ".json": whole_json,
    }
    if args.out is not None:
        write_file(args.out, writers[args.out.suffix](comparison).encode())
    if args.json:
        print(whole_json(comparison), end="")
        return 0
    if unlike:
        print(f"warning: the protocols differ: {'; '.join(unlike)}")
    print(as_text(comparison))
    return 0


def check(args: argparse.Namespace) -> None:
    """Check the options before anything is read. Raises UserError for a mistake."""
    number("--effect", args.effect, least=0.001, most=0.999)
    if args.planned is not None:
        integer("--planned", args.planned, least=3)
    refuse_ending("--out", args.out, FORMATS)
    check_methods("compare", args)


def find_groups(args: argparse.Namespace) -> "dict[str, list[FoundResult]]":
    """Find the results of each method, the baseline first."""
    from ..evaluation.results import (
        at_one_iteration,
        by_method,
        find_results,
        refuse_unused,
        with_figure,
    )

    if args.group:
        groups = {name: find_results(paths) for name, *paths in args.group}
    else:
        groups = by_method(find_results(args.runs))
    found = [item for items in groups.values() for item in items]
    if len(groups) < 2:
        raise UserError(
            f"compare: all results are of {next(iter(groups))}; give runs of two methods, or name "
            "variants of one by --group NAME RUN... for each."
        )
    if args.baseline is not None:
        if args.baseline not in groups:
            raise UserError(
                f"--baseline: no method {args.baseline!r}{nearest(args.baseline, groups)}"
            )
        groups = {args.baseline: groups[args.baseline], **groups}
    groups = {name: with_figure(name, items, args.metric) for name, items in groups.items()}
    groups = at_one_iteration(groups, args.iteration)
    if args.protocol is not None:
        groups = of_protocol(groups, args.protocol)
    refuse_unused(found, [item for items in groups.values() for item in items])
    return groups


def of_protocol(
    groups: "Mapping[str, Sequence[FoundResult]]", start: str
) -> "dict[str, list[FoundResult]]":
    """Choose the results whose protocol's hash begins with `start`."""
    chosen = {
        name: [item for item in items if item.result.protocol_hash.startswith(start)]
        for name, items in groups.items()
    }
    for name, items in chosen.items():
        if not items:
            hashes = {item.result.protocol_hash for item in groups[name]}
            raise UserError(
                f"--protocol: {name} has no result of {start!r}{nearest(start, hashes)}"
            )
    return chosen


def check_protocols(
    groups: "Mapping[str, Sequence[FoundResult]]", force: bool
) -> "list[Difference]":
    """Refuse results of different protocols, unless forced; returns the differences."""
    from ..evaluation.protocol import refuse_unlike

    items = [item for group in groups.values() for item in group]
    results = {str(item.path): item.result for item in items}
    try:
        return refuse_unlike(results, force=force)
    except UserError as error:
        shared = set.intersection(
            *({item.result.protocol_hash for item in group} for group in groups.values())
        )
        if len({item.result.protocol_hash for item in items}) < 2 or not shared:
            raise
        listed = ", ".join(sorted(shared))
        raise UserError(
            f"{error} All methods have results of protocol {listed}: choose one by --protocol."
        ) from error
