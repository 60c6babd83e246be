"""What the commands share: the parser, and printing a user's mistake as one line."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..registry.errors import UserError

STOPPED = 130  # exit code after Ctrl-C, as of a shell
PAGES = (".html", ".htm")  # endings of a web page


def report_mistake(error: UserError | BrokenPipeError) -> int:
    """Print a user's mistake as one line and return the exit code: 2, or 0 for a closed pipe.

    Of the processes that torchrun started, only the first one prints it.
    """
    if isinstance(error, BrokenPipeError):  # of our output, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    say_once(f"error: {error}")
    return 2


def say_once(text: str) -> None:
    """Print a line to standard error, unless another process of torchrun has done so."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun started this process
        from ..engine.distributed import first_to_say

        if not first_to_say(text):
            return
    print(text, file=sys.stderr, flush=True)


def run_command(run: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None) -> int:
    """Run a command; a user's mistake and Ctrl-C are one line.

    Args:
        run: The command, which returns its exit code.
        arguments: Its arguments; None for those of the process.

    Returns:
        The exit code: 2 for a mistake, 130 after Ctrl-C.
    """
    try:
        return run(arguments)
    except (UserError, BrokenPipeError) as error:
        return report_mistake(error)
    except KeyboardInterrupt:
        say_once("stopped by Ctrl-C.")
        return STOPPED


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the process with one line and an exit code if a user's mistake comes up inside."""
    try:
        yield
    except (UserError, BrokenPipeError) as error:
        sys.exit(report_mistake(error))


def refuse_empty(**options: str | None) -> None:
    """Refuse options of a command line that were given as empty text. Raises UserError."""
    for name, value in options.items():
        if value is not None and not value.strip():
            raise UserError(f"--{name.replace('_', '-')}: must not be empty, got {value!r}.")


def refuse_ending(name: str, path: Path | None, endings: Sequence[str]) -> None:
    """Refuse a file with another ending than these. Raises UserError."""
    if path is not None and path.suffix not in endings:
        raise UserError(f"{name}: must end in {', '.join(endings)}, got {str(path)!r}.")


def add_methods(parser: argparse.ArgumentParser, runs: str) -> None:
    """Add RUN... and --group NAME RUN..., by which a command takes the runs of several methods."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help=runs)
    parser.add_argument(
        "--group", nargs="+", action="append", default=[], metavar=("NAME", "RUN"), help="a method"
    )


def check_methods(command: str, args: argparse.Namespace) -> None:
    """Check the options of `add_methods`. Raises UserError for a mistake."""
    if bool(args.runs) == bool(args.group):
        raise UserError(f"{command}: give either RUN..., or --group NAME RUN... for each method.")
    names = [group[0] for group in args.group]
    for group in args.group:
        if len(group) < 2:
            raise UserError(f"--group: {group[0]!r} has no runs; write --group NAME RUN...")
    if len(set(names)) < len(names):
        raise UserError(f"--group: each name once, got {', '.join(names)}.")


def make_parser(description: str, command: str) -> argparse.ArgumentParser:
    """Make a parser whose help begins with a module's docstring."""
    return argparse.ArgumentParser(
        prog=f"ahpa {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
