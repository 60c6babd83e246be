"""Name what differs between the protocols of two results: ahpa compare-protocols A B

A and B are results of `ahpa evaluate`, or runs with exactly one. The exit code is 0 if they are
alike, so that their figures are comparable, and 1 if not. A value that nobody recorded differs from
every value.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..registry.errors import UserError
from .common import make_parser, report_mistake

if TYPE_CHECKING:
    from ..evaluation.results import FoundResult


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "compare-protocols")
    parser.add_argument("first", metavar="A", help="a result, or a run with one")
    parser.add_argument("second", metavar="B", help="another one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 alike, 1 different, 2 for a user's mistake."""
    try:
        return run(arguments)
    except (UserError, BrokenPipeError) as error:
        return report_mistake(error)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)

    from ..evaluation.protocol import differences

    first, second = single_result(args.first), single_result(args.second)
    found = differences(first.result.protocol, second.result.protocol)
    for letter, item in (("A", first), ("B", second)):
        print(f"{letter}: {item.path} (protocol {item.result.protocol_hash})")
    if not found:
        print("alike: their figures are comparable")
        return 0
    print(f"{len(found)} {'key differs' if len(found) == 1 else 'keys differ'}:")
    width = max(len(difference.key) for difference in found)
    for difference in found:
        pair = f"{shown(difference.first)} against {shown(difference.second)}"
        print(f"  {difference.key:{width}s}  {pair}")
    return 1


def single_result(path: str) -> "FoundResult":
    """Read the one result of a path. Raises UserError if there are several."""
    from ..evaluation.results import find_results

    found = find_results([path])
    if len(found) > 1:
        names = ", ".join(item.path.name for item in found)
        raise UserError(f"compare-protocols: {path} has several results; name one: {names}.")
    return found[0]


def shown(value: Any) -> str:
    """Return a protocol's value for the reader."""
    from ..evaluation.protocol import ABSENT, UNKNOWN, canonical_json

    if value in (UNKNOWN, ABSENT):
        return "not recorded"
    return value if isinstance(value, str) else canonical_json(value)
