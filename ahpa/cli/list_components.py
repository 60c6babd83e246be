"""List every registered component, or those of some registries: ahpa list [ROUTERS PRIORS ...]"""

from collections.abc import Sequence

from ..registry import listing
from ..registry.errors import UserError
from .common import make_parser, report_mistake


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake."""
    try:
        return run(arguments)
    except (UserError, BrokenPipeError) as error:
        return report_mistake(error)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    parser = make_parser(__doc__ or "", "list")
    parser.add_argument("kinds", nargs="*", help="names of registries; default all")
    return listing.main(parser.parse_args(arguments).kinds)
