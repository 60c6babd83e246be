"""Runs sorted into methods, their seeds summarised as curves with bands, and what differs between
the methods' configs and protocols."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...evaluation.protocol import (
    ABSENT,
    UNKNOWN,
    EvaluationResult,
    canonical_json,
    flatten,
    protocol_hash,
)
from ...evaluation.results import FoundResult, figures_by_seed
from ...evaluation.verdict import Comparison, compare_methods, direction, summarise
from ...registry import UserError
from .html import BLANK
from .runs import LoggedRun, section

BANDS = ("range", "stderr")
MOST_POINTS = 300  # of a curve; more log lines are averaged
PRIVATE = ("work_dir", "launcher", "visualizer", "resume", "load_from", "default_scope")
"""Keys of a config that do not say how a run is trained."""
UNSEEDED = (*PRIVATE, "randomness", "hooks", "checkpoints", "train_cfg")
"""Keys in which runs of one method may differ."""
CELL = 90  # characters of a value in a table of differences


@dataclass(frozen=True)
class Method:
    """Runs of one method, which differ in their seeds.

    Attributes:
        name: Its name.
        runs: Its runs, by seed.
    """

    name: str
    runs: Sequence[LoggedRun]

    @property
    def results(self) -> list[FoundResult]:
        """Results of all runs."""
        return [result for run in self.runs for result in run.results]

    @property
    def notes(self) -> list[str]:
        """What is odd about the runs as a group."""
        seeds = [run.seed for run in self.runs if run.seed is not None]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        listed = ", ".join(str(seed) for seed in twice)
        return [f"{self.name}: several runs have the seed {listed}"] if twice else []


def sort_runs(runs: Sequence[LoggedRun]) -> list[Method]:
    """Sort runs into methods: seeds of one method have equal configs but for seed, length, hooks
    and paths. Runs without a config stand alone.

    Args:
        runs: The runs; methods are in the order of their first ones.
    """
    groups: dict[str, list[LoggedRun]] = {}
    for run in runs:
        groups.setdefault(training_key(run), []).append(run)
    names: dict[str, list[LoggedRun]] = {}
    for members in groups.values():
        name = method_name(members)
        if name in names:
            name = members[0].name
        number = 2
        while name in names:
            name, number = f"{members[0].name} ({number})", number + 1
        names[name] = members
    return [make_method(name, members) for name, members in names.items()]


def make_method(name: str, runs: Sequence[LoggedRun]) -> Method:
    """Return a method with its runs in the order of their seeds."""
    return Method(name, sorted(runs, key=lambda run: (run.seed is None, run.seed or 0)))


def training_key(run: LoggedRun) -> str:
    """Return a text that is equal for seeds of one method."""
    kept = {key: value for key, value in run.config.items() if key not in UNSEEDED}
    return canonical_json(kept) if kept else str(run.path.resolve())


def method_name(runs: Sequence[LoggedRun]) -> str:
    """Return the name of a method: that of its results, else the work dir's without the seed."""
    names = {str(found.result.provenance.get("method")) for run in runs for found in run.results}
    if len(names) == 1 and names.isdisjoint({"None", UNKNOWN}):
        return unseeded(names.pop())
    return unseeded(runs[0].name)


def unseeded(name: str) -> str:
    """Return a name without the seed at its end, as in "sit-b-seed1"."""
    short = re.sub(r"[-_.]?(seed|s)[-_=]?\d+$", "", name, flags=re.IGNORECASE)
    return short.removesuffix("_demo") or name


# ---- curves -------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A place of a curve.

    Attributes:
        x: Iteration, or time.
        mean: Mean over seeds.
        low: Lower end of the band.
        high: Upper end.
        seeds: Number of seeds.
    """

    x: float
    mean: float
    low: float
    high: float
    seeds: int


def summarise_seeds(values: Sequence[float], band: str) -> tuple[float, float, float]:
    """Return mean and band of the seeds' values.

    Args:
        values: One value for each seed.
        band: "range" (smallest to largest) or "stderr" (mean -+ standard error, ddof 1).
    """
    mean = math.fsum(values) / len(values)
    if band == "range":
        return mean, min(values), max(values)
    if len(values) == 1:
        return mean, mean, mean
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - error, mean + error


def seed_curve(curves: Sequence[Mapping[float, float]], band: str) -> list[Point]:
    """Join curves of several seeds to one, at the places that all seeds which got that far have.

    Args:
        curves: {x: value} of each seed; values that are not finite are left out.
        band: See `summarise_seeds`.

    Returns:
        Points in order of x; after a seed has ended, `seeds` is smaller.
    """
    finite = [{x: y for x, y in curve.items() if math.isfinite(y)} for curve in curves]
    finite = [curve for curve in finite if curve]
    ends = [(min(curve), max(curve)) for curve in finite]
    points = []
    for x in sorted({x for curve in finite for x in curve}):
        pairs = zip(finite, ends, strict=True)
        there = [curve for curve, (first, last) in pairs if first <= x <= last]
        if all(x in curve for curve in there):
            values = [curve[x] for curve in there]
            points.append(Point(x, *summarise_seeds(values, band), len(values)))
    return points


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Average neighbouring points of equally many seeds, so that about `most` are left."""
    size = -(-len(points) // most)
    if size == 1:
        return list(points)
    chunks: list[list[Point]] = []
    for point in points:
        if not chunks or len(chunks[-1]) == size or chunks[-1][0].seeds != point.seeds:
            chunks.append([])
        chunks[-1].append(point)
    thinned = []
    for chunk in chunks:
        means = [math.fsum(column) / len(chunk) for column in zip(*chunk, strict=True)]
        thinned.append(Point(means[0], means[1], means[2], means[3], chunk[0].seeds))
    return thinned


def log_curve(method: Method, key: str, band: str) -> list[Point]:
    """Return the curve of a logged figure over iterations."""
    curves = [
        {record["iteration"]: float(record[key]) for record in run.records if key in record}
        for run in method.runs
    ]
    return thin(seed_curve(curves, band))


def logged_keys(methods: Sequence[Method]) -> list[str]:
    """List the logged figures that have a curve, in order of appearance."""
    skipped = ("iteration", "time")
    records = (record for m in methods for run in m.runs for record in run.records)
    return [key for key in dict.fromkeys(k for r in records for k in r) if key not in skipped]


def training_hours(run: LoggedRun) -> float | None:
    """Return the hours that the logged steps took, without pauses; None if unknown."""
    if run.batch is None:
        return None
    seconds, last = 0.0, 0.0
    for record in run.records:
        speed = record.get("images_per_s", 0.0)
        if not (math.isfinite(speed) and speed > 0):
            return None
        seconds += (record["iteration"] - last) * run.batch / speed
        last = record["iteration"]
    return seconds / 3600 if seconds else None


# ---- results ------------------------------------------------------------------------------------


def kind_of(result: EvaluationResult) -> str:
    """Return the hash of a protocol without its iteration: what a curve over training shares."""
    return protocol_hash({k: v for k, v in result.protocol.items() if k != "iteration"})


def iteration_of(found: FoundResult) -> int | None:
    """Return the iteration of a result; None if it is not recorded."""
    value = found.iteration
    return value if isinstance(value, int) else None


def metric_names(methods: Sequence[Method]) -> list[str]:
    """List the figures of all results, in order of appearance."""
    results = (found.result for method in methods for found in method.results)
    return list(dict.fromkeys(name for result in results for name in result.figures))


def metric_curve(method: Method, metric: str, kind: str, band: str) -> list[Point]:
    """Return the curve of a figure over the checkpoints of a method; each seed of the training is
    the mean of its sampling seeds.

    Args:
        method: The method.
        metric: Name of the figure.
        kind: What `kind_of` returned for the results that are drawn.
        band: See `summarise_seeds`.
    """
    seeds: dict[object, dict[float, list[float]]] = {}
    for found in method.results:
        iteration = iteration_of(found)
        wanted = metric in found.result.figures and kind_of(found.result) == kind
        if iteration is not None and wanted:
            seed = found.result.provenance.get("training_seed", str(found.given))
            value = float(found.result.figures[metric])
            seeds.setdefault(seed, {}).setdefault(iteration, []).append(value)
    means = [{x: math.fsum(v) / len(v) for x, v in row.items()} for row in seeds.values()]
    return seed_curve(means, band)


class Judged(NamedTuple):
    """Verdicts on one figure under one protocol.

    Attributes:
        metric: Name of the figure.
        protocol: Hash of the protocol; it holds the iteration.
        iteration: The iteration; None if unknown.
        comparison: The comparison; None if there is none.
        problem: Why there is none; empty if there is one.
    """

    metric: str
    protocol: str
    iteration: int | None
    comparison: Comparison | None
    problem: str = ""


def judge(methods: Sequence[Method], baseline: str | None = None) -> list[Judged]:
    """Compare methods by every figure that at least two have under one protocol, at the last
    iteration at which they have it.

    Args:
        methods: The methods.
        baseline: Name of the method to compare with; None for the first one.
    """
    ordered = sorted(methods, key=lambda method: method.name != baseline)
    judged = []
    for metric in metric_names(ordered):
        for kind in shared_kinds(ordered, metric):
            judged.append(judge_kind(ordered, metric, kind))
    return judged


def of_kind(method: Method, metric: str, kind: str) -> list[FoundResult]:
    """Return the results of a method that have a figure and a kind of protocol."""
    return [f for f in method.results if metric in f.result.figures and kind_of(f.result) == kind]


def shared_kinds(methods: Sequence[Method], metric: str) -> list[str]:
    """List the kinds of protocols under which at least two methods have a figure."""
    kinds = [{kind_of(f.result) for f in m.results if metric in f.result.figures} for m in methods]
    every = dict.fromkeys(kind_of(f.result) for m in methods for f in m.results)
    return [kind for kind in every if sum(kind in own for own in kinds) > 1]


def judge_kind(methods: Sequence[Method], metric: str, kind: str) -> Judged:
    """Compare methods by one figure under one kind of protocol."""
    found = {method.name: of_kind(method, metric, kind) for method in methods}
    found = {name: items for name, items in found.items() if items}
    iterations = [{iteration_of(item) for item in items} for items in found.values()]
    shared = set.intersection(*iterations)
    if not shared:
        text = "the methods have results of different iterations"
        return Judged(metric, kind, None, None, text)
    last = max(shared, key=lambda iteration: -1 if iteration is None else iteration)
    chosen = {
        name: [item for item in items if iteration_of(item) == last]
        for name, items in found.items()
    }
    hashes = {item.result.protocol_hash for items in chosen.values() for item in items}
    unknown = [
        key
        for items in chosen.values()
        for key, value in flatten(items[0].result.protocol)
        if value == UNKNOWN
    ]
    label = hashes.pop()
    if unknown:
        listed = ", ".join(dict.fromkeys(unknown))
        return Judged(metric, label, last, None, f"the protocol does not record {listed}")
    if better_of(metric) is None:
        text = "whether a higher or a lower one is better is not known"
        return Judged(metric, label, last, None, text)
    try:
        seeds = {name: figures_by_seed(name, items, metric) for name, items in chosen.items()}
        return Judged(metric, label, last, compare_methods(seeds, metric=metric))
    except UserError as error:
        return Judged(metric, label, last, None, str(error))


class FigureCell(NamedTuple):
    """A figure of a method under one protocol.

    Attributes:
        values: Mean over sampling seeds of each training seed.
        text: Mean and range for a reader.
    """

    values: Sequence[float]
    text: str


def figure_cell(name: str, found: Sequence[FoundResult], metric: str) -> FigureCell:
    """Summarise a figure of a method; seeds that are not recorded count as one for each result."""
    if not found:
        return FigureCell((), BLANK)
    try:
        seeds: Mapping[int, Mapping[int, float]] = figures_by_seed(name, found, metric)
    except UserError:
        seeds = {i: {0: float(f.result.figures[metric])} for i, f in enumerate(found)}
    values = [math.fsum(row.values()) / len(row) for row in seeds.values()]
    mean = summarise(name, seeds, "absolute").mean
    text = f"{mean:.4g}"
    if len(values) > 1:
        text += f" ({min(values):.4g} to {max(values):.4g}; {len(values)} seeds)"
    return FigureCell(values, text)


def better_of(metric: str) -> str | None:
    """Return "higher" or "lower"; None if the direction of a figure is not known.

    Args:
        metric: Name of the figure, maybe with an extractor behind a colon, as in "fd:tiny-vit".
    """
    try:
        return "higher" if direction(metric) else "lower"
    except UserError:
        return None


def better_text(metric: str) -> str:
    """Return which direction of a figure is better, in words."""
    better = better_of(metric)
    return f"{better} is better" if better else "direction unknown"


# ---- differences --------------------------------------------------------------------------------


def flatten_config(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and plain values of a config; lists that hold dicts are numbered, and empty
    dicts left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flatten_config(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from flatten_config(part, f"{prefix}[{number}]")
    else:
        yield prefix, value


def config_differences(methods: Sequence[Method]) -> tuple[list[str], list[list[str]]]:
    """List the keys in which the configs of methods differ, and in which seeds of one method do.

    Args:
        methods: The methods; seeds, work dirs and launchers are left out.

    Returns:
        The methods' names, and rows of a key and a value for each method.
    """
    shown = [method for method in methods if any(run.config for run in method.runs)]
    columns = [[compared_config(run) for run in m.runs if run.config] for m in shown]
    keys = dict.fromkeys(key for runs in columns for config in runs for key in config)
    rows = []
    for key in keys:
        values = [[config.get(key, ABSENT) for config in runs] for runs in columns]
        if len({canonical(value) for row in values for value in row}) > 1:
            rows.append([key, *(config_cell(row) for row in values)])
    return [method.name for method in shown], rows


def compared_config(run: LoggedRun) -> dict[str, Any]:
    """Return a run's flattened config without its name and what differs between any two runs."""
    kept = {key: value for key, value in run.config.items() if key not in (*PRIVATE, "method")}
    randomness = {k: v for k, v in section(kept, "randomness").items() if k != "seed"}
    return dict(flatten_config({**kept, "randomness": randomness}))


def canonical(value: Any) -> str:
    """Return a text that is equal for equal values."""
    return "" if value == ABSENT else canonical_json(value)


def config_cell(values: Sequence[Any]) -> str:
    """Return the values of a key in the runs of a method, each once."""
    texts: dict[str, str] = {}
    for value in values:
        texts.setdefault(canonical(value), BLANK if value == ABSENT else cut(value))
    return "; ".join(texts.values())


def cut(value: Any) -> str:
    """Return a value for a reader, cut to `CELL` characters."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def protocol_rows(
    protocols: Mapping[str, Mapping[str, Any]], *, differing: Callable[[set[str]], bool]
) -> list[list[str]]:
    """Return rows of a key and its value in each protocol.

    Args:
        protocols: {name: protocol}.
        differing: Takes the set of a key's values as JSON; whether the key is listed.
    """
    flat = [dict(flatten(protocol)) for protocol in protocols.values()]
    rows = []
    for key in dict.fromkeys(key for own in flat for key in own):
        values = [own.get(key, ABSENT) for own in flat]
        if differing({canonical(value) for value in values}):
            rows.append([key, *(BLANK if value == ABSENT else cut(value) for value in values)])
    return rows
