"""List the shipped configs, or print their folder: ahpa configs [TEXT] [--path]"""

from collections.abc import Sequence

from ..registry.errors import UserError
from ..registry.locations import config_root
from .common import make_parser, report_mistake


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake."""
    try:
        return run(arguments)
    except (UserError, BrokenPipeError) as error:
        return report_mistake(error)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    parser = make_parser(__doc__ or "", "configs")
    parser.add_argument("text", nargs="?", default="", help="part of a name, such as repa_sit")
    parser.add_argument("--path", action="store_true", help="print the folder of the configs")
    args = parser.parse_args(arguments)
    root = config_root()
    if args.path:
        print(root)
        return 0
    for path in sorted(root.glob("*.py")):
        if args.text in path.stem:
            summary = path.read_text().split('"""')[1].split("\n")[0]
            print(f"{path.stem:44s} {summary}")
    return 0
