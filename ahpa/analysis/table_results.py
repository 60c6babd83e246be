"""Our figures beside a table's: intervals over seeds, and whether the order is the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, t

from ..evaluation.protocol import EvaluationResult, refuse_unlike
from ..registry.validation import is_number
from .table_runs import Plan
from .tables import COSTS, GSNR, Row

LEVEL = 0.95
REDRAWS = 4000
CHANCE = 0.05  # largest probability that a random order agrees as well, for "confirmed"
FEWEST_ROWS = 3
PROTOCOL_KEYS = {  # what a table compares -> keys of the protocol
    "iteration": ("iteration",),
    "sampler": ("sampler", "steps", "evaluations", "times"),
    "guidance": ("guidance",),
    "latents": ("latents", "decoder"),
}


class Estimate(NamedTuple):
    """A figure over training seeds.

    Attributes:
        mean: Its mean.
        margin: Half of Student's 95 % interval of the mean; None with one seed.
        seeds: Number of training seeds.
    """

    mean: float
    margin: float | None
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and 95 % interval of values of independent training seeds."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, None, count)
    quantile = t.ppf((1 + LEVEL) / 2, count - 1)
    return Estimate(mean, float(quantile * np.std(values, ddof=1) / count**0.5), count)


# ---- the order of the rows ------------------------------------------------------------------


class Agreement(NamedTuple):
    """How well the order of our rows agrees with the printed one.

    Attributes:
        tau: Kendall's tau-b of the printed figures and our means.
        low: Lower end of its 95 % interval over seeds; None if no row has two seeds.
        high: Upper end.
        chance: Probability that a random order of the rows agrees at least as well.
        rows: Number of rows.
        counted: Whether our figures are counts, which no seed moves.
    """

    tau: float
    low: float | None
    high: float | None
    chance: float
    rows: int
    counted: bool = False

    def words(self) -> str:
        """Return the finding in plain words."""
        shown = f"Kendall's tau {self.tau:.2f}"
        if self.counted:
            return f"{shown} over {self.rows} rows (no training seed is involved)"
        if self.low is None:
            return (
                f"{shown} over {self.rows} rows with one training seed: not decided, since nothing "
                "says how far another seed would move the rows"
            )
        shown += f", 95 % interval over seeds {self.low:.2f} to {self.high:.2f}"
        if self.high is not None and self.high < 0:
            return f"the paper's order is contradicted ({shown}, {self.rows} rows)"
        if self.low <= 0:
            return f"not decided whether the paper's order holds ({shown}, {self.rows} rows)"
        if self.chance <= CHANCE:
            return f"the paper's order is confirmed ({shown}, {self.rows} rows)"
        return (
            f"the order agrees with the paper's ({shown}), but a random order of {self.rows} rows "
            f"would agree as well with probability {self.chance:.2g}: not confirmed"
        )


def agreement(
    printed: Sequence[float], values: Sequence[Sequence[float]], *, seed: int = 0
) -> Agreement | None:
    """Compare the order of rows with the printed one.

    The interval says how far other training seeds could move our rows: each row's mean is redrawn
    from Student's t around it, with the spread over seeds pooled over the rows (relative if all
    figures are positive), and tau is computed anew.

    Args:
        printed: The printed figure of each row.
        values: Our figures of each row, one for each training seed.
        seed: Seed of the redraws.

    Returns:
        The agreement; None with fewer than three rows, or if one side is constant.
    """
    if len(printed) < FEWEST_ROWS:
        return None
    arrays = [np.asarray(own, dtype=float) for own in values]
    means = np.array([own.mean() for own in arrays])
    found = kendalltau(printed, means, alternative="greater")
    if not np.isfinite(found.statistic):
        return None
    tau, chance = float(found.statistic), float(found.pvalue)
    if all((own > 0).all() for own in arrays):
        arrays = [np.log(own) for own in arrays]
    freedom = sum(len(own) - 1 for own in arrays)
    if not freedom:
        return Agreement(tau, None, None, chance, len(printed))
    pooled = sum(((own - own.mean()) ** 2).sum() for own in arrays) / freedom
    centre = np.array([own.mean() for own in arrays])
    error = np.sqrt(pooled / np.array([len(own) for own in arrays]))
    draws = t.rvs(freedom, size=(REDRAWS, len(arrays)), random_state=np.random.default_rng(seed))
    taus = kendall(np.asarray(printed, dtype=float), centre + error * draws)
    low, high = np.quantile(taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Agreement(tau, float(low), float(high), chance, len(printed))


def kendall(printed: np.ndarray, redrawn: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b of [rows] against each of [n, rows]."""
    first, second = np.triu_indices(len(printed), 1)
    ours = np.sign(redrawn[:, first] - redrawn[:, second])
    theirs = np.sign(printed[first] - printed[second])
    ties = np.sqrt((theirs != 0).sum() * (ours != 0).sum(axis=1))
    return (ours * theirs).sum(axis=1) / np.maximum(ties, 1)


# ---- a table's figures ----------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A figure of a table.

    Attributes:
        printed: The paper's name of it; "" for a figure that only we have.
        ours: Our name of it; "" if nothing stands beside the paper's.
    """

    printed: str
    ours: str


@dataclass(frozen=True)
class Results:
    """What was measured for a table.

    Attributes:
        plan: What was wanted.
        columns: The figures.
        ours: {(index of the row, our figure): {training seed: value}}.
        hashes: Hashes of the protocols.
        unlike: Differences of the protocols that the table does not compare; shown with --force.
    """

    plan: Plan
    columns: tuple[Column, ...]
    ours: Mapping[tuple[int, str], Mapping[int, float]]
    hashes: tuple[str, ...]
    unlike: tuple[str, ...]

    def estimate(self, row: int, column: Column) -> Estimate | None:
        """Return our figure of a row; None if it was not measured."""
        own = self.ours.get((row, column.ours))
        return estimate(list(own.values())) if own else None

    def agreement(self, column: Column) -> Agreement | None:
        """Compare the order of the rows that have both figures. None if it says nothing."""
        rows = self.plan.table.rows
        both = [
            (float(row.printed[column.printed]), list(self.ours[number, column.ours].values()))
            for number, row in enumerate(rows)
            if is_number(row.printed.get(column.printed)) and (number, column.ours) in self.ours
        ]
        found = agreement([a for a, _ in both], [b for _, b in both])
        counted = column.printed in COSTS
        return found._replace(counted=counted) if found is not None else None


def gather(plan: Plan, *, force: bool = False) -> Results:
    """Read what is there.

    Args:
        plan: What is wanted.
        force: Whether to show results of unlike protocols side by side.

    Raises:
        UserError: If protocols differ in more than the table compares, or a result is damaged.
    """
    ours: dict[tuple[int, str], dict[int, float]] = {}
    read: dict[Path, EvaluationResult] = {}
    by_kind: dict[str, dict[str, EvaluationResult]] = {}
    for number, measurements in plan.measured.items():
        for measurement in measurements:
            if not measurement.complete:
                continue
            if measurement.path not in read:
                read[measurement.path] = measurement.read()
            result = read[measurement.path]
            kind = by_kind.setdefault(measurement.kind, {})
            kind[f"{plan.table.rows[number].name} ({measurement.name})"] = result
            seed = int(result.provenance["training_seed"])
            for name, value in result.figures.items():
                ours.setdefault((number, name), {})[seed] = value
    ignored = [key for part in plan.table.compares for key in PROTOCOL_KEYS[part]]
    unlike = [
        str(difference)
        for results in by_kind.values()
        for difference in refuse_unlike(results, force=force, ignore=ignored)
    ]
    hashes = {r.protocol_hash for results in by_kind.values() for r in results.values()}
    known = {name for _, name in ours}
    columns = columns_of(plan, known)
    return Results(plan, columns, ours, tuple(sorted(hashes)), tuple(dict.fromkeys(unlike)))


def columns_of(plan: Plan, known: Iterable[str]) -> tuple[Column, ...]:
    """Return the columns of a table: the paper's, then figures that only we have.

    Args:
        plan: What is wanted.
        known: The figures that were measured.
    """
    found = [Column(name, beside(plan, name)) for name in plan.table.figures]
    shown = {column.ours for column in found}
    hidden = {*GSNR, *COSTS}
    extra = sorted(name for name in known if name not in shown | hidden)
    return (*found, *(Column("", name) for name in extra))


def beside(plan: Plan, printed: str) -> str:
    """Return our figure beside a printed one; "" for none."""
    if printed in GSNR or printed in COSTS:
        return printed
    return plan.scale.figures.get(printed) or ""


def paper_value(row: Row, column: Column) -> Any:
    """Return the printed figure of a row, or None."""
    return row.printed.get(column.printed) if column.printed else None
