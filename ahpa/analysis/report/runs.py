"""Reading what runs have written; what is missing or spoilt becomes a note."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.lock import NAME as LOCK
from ...evaluation.protocol import load_result
from ...evaluation.results import FoundResult
from ...registry import UserError
from ...registry.files import read_json, user_path
from ...registry.validation import is_number
from .html import BLANK

ANALYSIS = "ahpa-analysis-1"  # format of the results of `ahpa analyze`
LARGEST_PICTURE = 32 << 20  # bytes of a file that is read

Record = Mapping[str, float]
"""A line of scalars.json."""


@dataclass(frozen=True)
class Policy:
    """A router's policy as the hook RoutingPolicy wrote it.

    Attributes:
        router: Name of the router.
        iteration: Optimiser steps done.
        table: Column -> values: "t", "beta_<group>", "alpha_<group>_<level>" and more.
    """

    router: str
    iteration: int
    table: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Analysis:
    """A result of `ahpa analyze`.

    Attributes:
        path: Its JSON file; the pictures and the CSV lie beside it.
        content: The whole JSON.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Which diagnostic it is, such as "gsnr"."""
        return str(self.content.get("kind", self.path.stem))

    def beside(self, suffix: str) -> bytes | None:
        """Return the file beside it with a suffix such as ".svg"; None if there is none."""
        return read_bytes(self.path.with_suffix(suffix))


@dataclass(frozen=True)
class LoggedRun:
    """What a run has written.

    Attributes:
        path: Its work dir.
        name: Name of the work dir.
        config: The resolved config; empty if it cannot be read.
        records: Lines of scalars.json in order of iterations.
        grids: {iteration: picture of samples}.
        policies: The newest policy of each router.
        results: Results of `ahpa evaluate`.
        analyses: Results of `ahpa analyze`.
        held: Whether run.lock is there: the run is going on, or was killed.
        notes: What is missing or was left out, one line each.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    records: Sequence[Record]
    grids: Mapping[int, Path]
    policies: Sequence[Policy]
    results: Sequence[FoundResult]
    analyses: Sequence[Analysis]
    held: bool
    notes: Sequence[str] = field(default=())

    @property
    def seed(self) -> int | None:
        """Seed of the training; None if it is not recorded."""
        found = section(self.config, "randomness").get("seed")
        return found if isinstance(found, int) else None

    @property
    def iteration(self) -> int:
        """The last iteration that left anything: a log line or a grid."""
        logged = [int(record["iteration"]) for record in self.records[-1:]]
        return max([0, *logged, *self.grids])

    @property
    def planned(self) -> int | None:
        """Iterations that the config asks for; None if unknown."""
        found = section(self.config, "train_cfg").get("max_iters")
        return found if isinstance(found, int) else None

    @property
    def batch(self) -> int | None:
        """Samples per step; None if unknown."""
        found = section(self.config, "train_dataloader").get("global_batch_size")
        return found if isinstance(found, int) else None

    @property
    def state(self) -> str:
        """Where the run stands, in words."""
        if self.planned is None:
            return f"{self.iteration:,} iterations"
        if self.iteration >= self.planned:
            return f"finished, {self.iteration:,} iterations"
        going = "going on" if self.held else "stopped"
        return f"{going}: {self.iteration:,} of {self.planned:,} iterations"


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config; empty if it is not there."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def read_run(given: Path | str) -> LoggedRun:
    """Read a work dir.

    Raises:
        UserError: If it is none.
    """
    path = user_path(given, "RUN")
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"RUN: {path} {what}; expected the work dir of a run.")
    log, config_file = path / "scalars.json", path / "config.json"
    if not log.is_file() and not config_file.is_file():
        raise UserError(
            f"RUN: {path} is no work dir of a run: it has neither scalars.json nor config.json."
        )
    notes: list[str] = []
    config = read_config(config_file, notes)
    records = read_log(log, notes)
    grids = numbered(path / "samples", "png")
    if not grids:
        notes.append("no grids of samples (the hook SampleGrids draws them)")
    folder = path / "analysis"
    return LoggedRun(
        path=path,
        name=path.resolve().name,
        config=config,
        records=records,
        grids=grids,
        policies=read_policies(path / "policy", notes),
        results=read_results(path / "evaluations", notes),
        analyses=read_analyses(folder, notes) if folder.is_dir() else [],
        held=(path / LOCK).exists(),
        notes=notes,
    )


def read_config(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """Read a resolved config; {} and a note if that is not possible."""
    try:
        found = read_json(path, "config")
    except UserError as error:
        notes.append(str(error).rstrip("."))
        return {}
    if isinstance(found, Mapping):
        return found
    notes.append(f"{path.name} is no config")
    return {}


def read_log(path: Path, notes: list[str]) -> list[Record]:
    """Read a log in order of iterations; spoilt lines are left out, with a note.

    Of an iteration that stands there twice the later line counts, as after a resume.
    """
    data = read_bytes(path, most=1 << 30)
    if data is None:
        notes.append("no log (scalars.json)")
        return []
    records: dict[int, Record] = {}
    spoilt = 0
    for line in data.splitlines():
        if not line.strip():
            continue
        record = parse_record(line)
        if record is None:
            spoilt += 1
        else:
            records[int(record["iteration"])] = record
    if spoilt:
        lines = "1 spoilt line" if spoilt == 1 else f"{spoilt} spoilt lines"
        notes.append(f"scalars.json: {lines} left out")
    if not records:
        notes.append("the log has no lines yet")
    infinite = sum(not math.isfinite(value) for r in records.values() for value in r.values())
    if infinite:
        notes.append(f"scalars.json: {infinite} figures that are not finite are not drawn")
    return [records[iteration] for iteration in sorted(records)]


def parse_record(line: bytes) -> Record | None:
    """Return the figures of a line of a log; None if it is spoilt."""
    try:
        record = json.loads(line)
        iteration = record["iteration"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
        return None
    return {key: value for key, value in record.items() if is_figure(value)}


def is_figure(value: object) -> bool:
    """Whether a value is a number, finite or not."""
    return isinstance(value, float) or (isinstance(value, int) and is_number(value))


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return {iteration: file} of files named iter_N.SUFFIX, in order."""
    found = {}
    for path in folder.glob(f"iter_*.{suffix}"):
        match = re.fullmatch(r"iter_(\d{1,12})", path.stem)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_policies(folder: Path, notes: list[str]) -> list[Policy]:
    """Read the newest CSV of each router; unreadable ones become notes."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*_iter_*.csv")):
        match = re.fullmatch(r"(.+)_iter_(\d{1,12})", path.stem)
        if match:
            newest[match[1]] = max(newest.get(match[1], (-1, path)), (int(match[2]), path))
    found = []
    for router, (iteration, path) in newest.items():
        try:
            found.append(Policy(router, iteration, read_columns(path)))
        except UserError as error:
            notes.append(str(error).rstrip("."))
    return found


def read_columns(path: Path) -> dict[str, list[float]]:
    """Read a CSV of numbers with a column "t". Raises UserError."""
    data = read_bytes(path)
    try:
        head, *rows = csv.reader(io.StringIO((data or b"").decode()))
        values = [[float(cell) for cell in row] for row in rows]
        columns = {name: list(column) for name, *column in zip(head, *values, strict=True)}
        finite = all(math.isfinite(value) for row in values for value in row)
        if not values or "t" not in columns or not finite:
            raise ValueError
    except (ValueError, csv.Error) as error:
        raise UserError(f"policy/{path.name} cannot be read.") from error
    return columns


def read_results(folder: Path, notes: list[str]) -> list[FoundResult]:
    """Read all results of a folder; what is none becomes a note."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(FoundResult(path, load_result(path), folder.parent))
        except UserError as error:
            notes.append(str(error).rstrip("."))
    return found


def read_analyses(folder: Path, notes: list[str]) -> list[Analysis]:
    """Read all results of `ahpa analyze` of a folder; what is none becomes a note."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_json(path, "analysis", most=LARGEST_PICTURE)
        except UserError as error:
            notes.append(str(error).rstrip("."))
            continue
        if isinstance(content, Mapping) and content.get("format") == ANALYSIS:
            found.append(Analysis(path, content))
        else:
            notes.append(f"{path.name} was not written by `ahpa analyze` and is left out")
    return found


def read_bytes(path: Path, *, most: int = LARGEST_PICTURE) -> bytes | None:
    """Return a file's content; None if it is not there, larger than `most` or unreadable."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


# ---- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenTable:
    """A table that was given as a file.

    Attributes:
        title: Its title.
        columns: Heads of the columns.
        rows: Cells, one list a row, of the columns' number.
        notes: Lines below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def read_table(given: Path) -> GivenTable:
    """Read a table: CSV with a head line; or JSON, a list of rows, or {"title", "columns", "rows",
    "notes"} of which only "rows" is needed. A row is a dict, or a list if there are columns.

    Raises:
        UserError: If the file is something else.
    """
    path = user_path(given, "--table")
    if path.suffix == ".csv":
        head, *lines = parse_csv(path)
        return GivenTable(path.stem, head, lines)
    if path.suffix != ".json":
        raise UserError(f"--table: {path} must be a .csv or .json file.")
    content = read_json(path, "--table")
    whole = content if isinstance(content, Mapping) else {"rows": content}
    rows, columns = whole.get("rows"), whole.get("columns")
    if not isinstance(rows, list) or not rows:
        raise UserError(f'--table: {path} has no list of rows, nor any under "rows".')
    if not isinstance(columns, list):
        dicts = [row for row in rows if isinstance(row, Mapping)]
        columns = list(dict.fromkeys(key for row in dicts for key in row))
    cells = [cells_of(row, columns, path) for row in rows]
    notes = whole.get("notes")
    return GivenTable(
        title=str(whole.get("title") or path.stem),
        columns=[str(name) for name in columns],
        rows=cells,
        notes=[str(line) for line in notes] if isinstance(notes, list) else (),
    )


def parse_csv(path: Path) -> list[list[str]]:
    """Return the lines of a CSV, the head first. Raises UserError."""
    data = read_bytes(path)
    if data is None:
        raise UserError(f"--table: {path} cannot be read.")
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    except (ValueError, csv.Error) as error:
        raise UserError(f"--table: {path} is no CSV in UTF-8 ({error}).") from error
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        raise UserError(f"--table: {path} must have a head and rows of equal length.")
    return rows


def cells_of(row: Any, columns: Sequence[Any], path: Path) -> list[str]:
    """Return a row's cells as text. Raises UserError if it does not fit the columns."""
    if isinstance(row, Mapping):
        return [shown(row.get(name)) for name in columns]
    if isinstance(row, list) and len(row) == len(columns) and columns:
        return [shown(value) for value in row]
    raise UserError(f"--table: {path}: a row is neither a dict nor a list of {len(columns)} cells.")


def shown(value: Any) -> str:
    """Return a value of JSON for a reader."""
    if value is None:
        return BLANK
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)) and not any(isinstance(v, Mapping) for v in value):
        return ", ".join(shown(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def read_runs(paths: Iterable[Path | str]) -> list[LoggedRun]:
    """Read work dirs, each once. Raises UserError if one is none."""
    found: dict[Path, LoggedRun] = {}
    for path in paths:
        run = read_run(path)
        found.setdefault(run.path.resolve(), run)
    return list(found.values())
