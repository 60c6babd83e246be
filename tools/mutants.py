"""Puts known bugs into a copy of the project, one at a time, and checks that the tests notice each.

    python tools/mutants.py                                  # all of tools/mutant_list.py
    python tools/mutants.py --only ema-decay-swapped tap-off-by-one
    python tools/mutants.py --jobs 2 --report docs/mutants.md

The checkout is only read. Every mutant gets a fresh copy of it in a temporary folder, where the
tests that are named for it run until the first failure. Exit codes: 0 if every mutant is killed,
1 if one survives, 2 if nothing can be said: a mutant whose old text is not found exactly once, or
tests that cannot run or fail without any bug.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", "__pycache__", ".*_cache", ".venv", "*.egg-info", "build", "dist", "work_dirs"
)
TIME_LIMIT = 900  # seconds for the tests of one mutant; a mutant that hangs counts as killed
TESTS_PASSED, TESTS_FAILED = 0, 1  # pytest's exit codes; others mean that the tests did not run
SURVIVED = "survived"


class BrokenTests(Exception):
    """The tests could not run, or fail without any bug."""


class Result(NamedTuple):
    """A mutant and the test that killed it; None if it survived."""

    mutant: Mutant
    killed_by: str | None


def find_stale(mutants: Sequence[Mutant]) -> list[str]:
    """Describe the mutants whose old text does not occur exactly once in their file."""
    stale = []
    for mutant in mutants:
        path = ROOT / mutant.file
        count = path.read_text().count(mutant.old) if path.exists() else 0
        if count != 1:
            stale.append(f"{mutant.name}: {mutant.old!r} occurs {count} times in {mutant.file}")
    return stale


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A temporary copy of the checkout."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        yield copy


def run_tests(tree: Path, tests: Sequence[str]) -> str | None:
    """Run tests in a copy of the project.

    Returns:
        The first test that fails ("timeout" for tests that never end), or None if all pass.

    Raises:
        BrokenTests: If pytest could not run them, for example because a file cannot be imported.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    options = ["-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    options += ["-n", "0"]  # with workers, pytest's exit code after -x is not that of a failure
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == TESTS_PASSED:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != TESTS_FAILED or found is None:
        raise BrokenTests(f"{' '.join(tests)}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return found[1]


def check_without_bug(mutants: Sequence[Mutant]) -> None:
    """Run every named file of tests on an unchanged copy. Raises BrokenTests if a test fails."""
    with copied_tree() as tree:
        for name in sorted({name for mutant in mutants for name in mutant.tests}):
            failed = run_tests(tree, [name])
            if failed is not None:
                raise BrokenTests(f"{name} without any bug: {failed}")


def try_mutant(mutant: Mutant) -> Result:
    """Apply one mutant to a fresh copy and run its tests there."""
    with copied_tree() as tree:
        path = tree / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        try:
            result = Result(mutant, run_tests(tree, mutant.tests))
        except BrokenTests as error:
            raise BrokenTests(f"{mutant.name}: {error}") from error
    print(f"{mutant.name}: {result.killed_by or SURVIVED}", flush=True)
    return result


def report(results: Sequence[Result]) -> str:
    """The results as a Markdown page."""
    killed = sum(result.killed_by is not None for result in results)
    noticed = "all" if killed == len(results) else str(killed)
    areas = Counter(Path(result.mutant.file).parts[1] for result in results)
    lines = [
        "# Mutants",
        "",
        f"{len(results)} known bugs, each put alone into a copy of ahpa; tests notice {noticed}.",
        f"By folder of `ahpa/`: {', '.join(f'{name} {n}' for name, n in sorted(areas.items()))}.",
        "Written by `python tools/mutants.py --report docs/mutants.md`; the bugs stand in",
        "`tools/mutant_list.py`.",
        "",
        "| mutant | file | killed by |",
        "| --- | --- | --- |",
    ]
    for mutant, killed_by in results:
        test = f"`{killed_by.removeprefix('tests/')}`" if killed_by else f"**{SURVIVED}**"
        lines.append(f"| {mutant.name} | `{mutant.file}` | {test} |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these mutants")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time; default 1")
    parser.add_argument("--report", type=Path, help="write a Markdown table to this file")
    skip = "do not first run the tests without any bug"
    parser.add_argument("--skip-check", action="store_true", help=skip)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    mutants = [mutant for mutant in MUTANTS if not args.only or mutant.name in args.only]
    stale = find_stale(mutants)
    if stale:
        print("these mutants no longer apply; update tools/mutant_list.py:", file=sys.stderr)
        print("\n".join(stale), file=sys.stderr)
        return 2
    try:
        if not args.skip_check:
            check_without_bug(mutants)
        with ThreadPoolExecutor(max_workers=args.jobs) as pool:
            results = list(pool.map(try_mutant, mutants))
    except BrokenTests as error:
        print(error, file=sys.stderr)
        return 2
    if args.report:
        args.report.write_text(report(results))
    survivors = [result.mutant.name for result in results if result.killed_by is None]
    print(f"{len(results) - len(survivors)} of {len(results)} mutants killed")
    if survivors:
        print(f"survived: {', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
