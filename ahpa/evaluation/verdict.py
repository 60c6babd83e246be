"""Whether one method is better than another, from runs over several training and sampling seeds.

The model is hierarchical, figure = method + training seed + sampling seed, on a log scale for
relative differences. Welch's interval over the means of training seeds decides; its level keeps
false verdicts at 5 % although a user looks after every new training seed (docs/verdicts.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import nctdtr, stdtr, stdtrit

from ..registry import ConfigError, UserError, nearest
from ..registry.validation import choice, integer, number

FALSE_VERDICTS = 0.05  # probability of a verdict if there is no difference
POWER = 0.8
EFFECT = 0.03  # relative difference that is worth finding
FEWEST, MOST = 3, 24  # training seeds of a method for a verdict
MOST_COMPARISONS = 10
SCALES = ("relative", "absolute")
TRAINING_SPREAD = 0.013  # relative, of FID over training seeds (arXiv:2606.20536)
SAMPLING_SPREAD = TRAINING_SPREAD / 3.2

HIGHER_IS_BETTER = {
    "fid": False,
    "sfid": False,
    "kid": False,
    "cmmd": False,
    "fd": False,
    "fd-dinov2": False,
    "fdr6": False,
    "mind": False,
    "is": True,
    "precision": True,
    "recall": True,
    "clipscore": True,
    "pickscore": True,
}

Seeds = Mapping[int, Mapping[int, float]]
"""{training seed: {sampling seed: value}} of a method's figure."""


# ---- the interval -------------------------------------------------------------------------------


class Welch(NamedTuple):
    """Welch's comparison of two means; arrays of equal shape [...].

    Attributes:
        difference: Second mean minus first mean.
        error: Standard error of the difference.
        freedom: Degrees of freedom (Welch 1947, Satterthwaite 1946).
    """

    difference: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def probability(self) -> np.ndarray:
        """Return the two-sided probability of a difference this large without an effect."""
        return 2 * stdtr(self.freedom, -np.abs(self.difference / self.error))

    def margin(self, level: float) -> np.ndarray:
        """Return the half-width of the interval that misses the effect with probability `level`."""
        return stdtrit(self.freedom, 1 - level / 2) * self.error


def welch(first: np.ndarray, second: np.ndarray) -> Welch:
    """Compare the means over the last axis; the variances may differ.

    Args:
        first: [..., n] independent values of the first method, n >= 2.
        second: [..., m] values of the second method, m >= 2.
    """
    parts = [values.var(axis=-1, ddof=1) / values.shape[-1] for values in (first, second)]
    squared = parts[0] + parts[1]
    freedom = squared**2 / sum(
        part**2 / (values.shape[-1] - 1) for part, values in zip(parts, (first, second))
    )
    return Welch(second.mean(axis=-1) - first.mean(axis=-1), np.sqrt(squared), freedom)


def look_level(level: float) -> float:
    """Return the level of one look for which all looks together err with probability `level`.

    There may be a look at each equal number of training seeds of both methods, from 3 to 24. The
    formula was fitted to simulated paths of Welch's test, on the safe side for spreads that differ
    up to three times; tests/test_verdict.py simulates them anew.

    Args:
        level: Probability of a false verdict over all looks, in [0.005, 0.05].
    """
    return 0.13 * level * (level / 0.05) ** 0.24


def power(
    effect: float | np.ndarray,
    first: float | np.ndarray,
    second: float | np.ndarray,
    seeds: np.ndarray,
    level: float,
) -> np.ndarray:
    """Return the probability that Welch's test at one look finds an effect and its sign
    (noncentral t).

    Args:
        effect: True difference of the means.
        first: Standard deviation over the training seeds of the first method.
        second: The same of the second method.
        seeds: Training seeds of each method, at least 2.
        level: Level of the look.
    """
    squared = (np.square(first) + np.square(second)) / seeds
    freedom = (np.square(first) + np.square(second)) ** 2 / (
        (np.power(first, 4) + np.power(second, 4)) / (seeds - 1)
    )
    bound = stdtrit(freedom, 1 - level / 2)
    shift = np.minimum(np.abs(effect) / np.sqrt(squared), 3 * bound)  # there the power is 1
    return 1 - nctdtr(freedom, shift, bound)


def seeds_needed(effect: float, first: float, second: float, level: float) -> int | None:
    """Return the fewest training seeds of each method with a power of 80 %; None beyond 24.

    Args:
        effect: True difference of the means.
        first: Standard deviation over the training seeds of the first method.
        second: The same of the second method.
        level: Level of the look.
    """
    seeds = np.arange(FEWEST, MOST + 1)
    enough = power(effect, first, second, seeds, level) >= POWER
    return int(seeds[enough][0]) if enough.any() else None


# ---- methods ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodSummary:
    """What the runs of one method show.

    Attributes:
        name: Name of the method.
        training_seeds: Number of training seeds.
        results: Number of results, over all training and sampling seeds.
        mean: Mean over training seeds; the geometric mean on the relative scale.
        spread: Standard deviation over training seeds, each the mean of its sampling seeds;
            relative on the relative scale. None for one training seed.
        training_spread: The part of `spread` that remains with unlimited sampling seeds; None
            without a training seed that has several sampling seeds.
        sampling_spread: Standard deviation over the sampling seeds of one training seed.
    """

    name: str
    training_seeds: int
    results: int
    mean: float
    spread: float | None
    training_spread: float | None
    sampling_spread: float | None


def seed_means(name: str, seeds: Seeds, scale: str) -> np.ndarray:
    """Return the mean of each training seed, in order, over its sampling seeds; in logs if `scale`
    is "relative": float64 [n].

    Raises:
        UserError: If a value on the relative scale is not positive.
    """
    values = [list(sampled.values()) for _, sampled in sorted(seeds.items())]
    if scale == "relative":
        if min(min(row) for row in values) <= 0:
            raise UserError(
                f"{name}: a relative difference needs values above 0, got "
                f"{min(min(row) for row in values):g}; pass --scale absolute."
            )
        values = [[float(np.log(value)) for value in row] for row in values]
    return np.array([np.mean(row) for row in values])


def summarise(name: str, seeds: Seeds, scale: str = "relative") -> MethodSummary:
    """Summarise a method, with the spreads of training and sampling seeds (analysis of variance).

    Args:
        name: Name of the method.
        seeds: {training seed: {sampling seed: value}}.
        scale: "relative" or "absolute".
    """
    means = seed_means(name, seeds, scale)
    values = [np.array(list(sampled.values())) for sampled in seeds.values()]
    logs = [np.log(row) if scale == "relative" else row for row in values]
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    freedom = sum(len(row) - 1 for row in logs)
    training = sampling = None
    if freedom and spread is not None:
        within = sum(((row - row.mean()) ** 2).sum() for row in logs) / freedom
        left = spread**2 - within * np.mean([1 / len(row) for row in logs])
        training, sampling = float(np.sqrt(max(left, 0.0))), float(np.sqrt(within))
    mean = float(np.exp(means.mean()) if scale == "relative" else means.mean())
    count = sum(len(row) for row in logs)
    return MethodSummary(name, len(means), count, mean, spread, training, sampling)


# ---- the verdict --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether the second of two methods is better or worse than the first.

    Attributes:
        first: Name of the first method.
        second: Name of the second method.
        better: Name of the better one; None if inconclusive.
        reason: Why it is inconclusive, in plain words; empty if it is decided.
        compared: Training seeds of each method that the difference rests on: if one method has
            more, those with the lowest numbers.
        difference: Second against first: relative (-0.03 is 3 % less) or absolute.
        low: Lower end of the interval of `difference`; None for fewer than 3 training seeds.
        high: Upper end.
        spread_known: Whether a spread is known that says how many training seeds decide.
        needed_observed: Training seeds of each method that decide with a power of 80 % if the true
            difference is the observed one; None if more than 24.
        needed_effect: The same if the true difference is `Comparison.effect`.
        from_field: Whether these two rest on the field's spread of FID, for want of runs.
    """

    first: str
    second: str
    better: str | None
    reason: str
    compared: int
    difference: float
    low: float | None
    high: float | None
    spread_known: bool
    needed_observed: int | None
    needed_effect: int | None
    from_field: bool


@dataclass(frozen=True)
class Comparison:
    """Verdicts on methods, each against the first.

    Attributes:
        metric: Name of the figure.
        higher_is_better: Its direction.
        scale: "relative" or "absolute".
        effect: Relative difference that is worth finding.
        planned: Training seeds of each method that were planned; None if every number of them is a
            look.
        level: Probability of a false verdict for one comparison, over all looks.
        methods: All methods, the first first.
        verdicts: One for each method but the first.
    """

    metric: str
    higher_is_better: bool
    scale: str
    effect: float
    planned: int | None
    level: float
    methods: tuple[MethodSummary, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def look(self) -> float:
        """Level of one look."""
        return self.level if self.planned else look_level(self.level)


def direction(metric: str, better: str | None = None) -> bool:
    """Return whether a higher figure is better.

    Args:
        metric: Name of the figure; what follows a colon is the feature extractor ("fd:resnet").
        better: "higher" or "lower", for a figure that is not in `HIGHER_IS_BETTER`.

    Raises:
        ConfigError: If it is unknown, or contradicts what is known.
    """
    known = HIGHER_IS_BETTER.get(metric.lower().replace("_", "-").partition(":")[0])
    if better is None:
        if known is None:
            raise ConfigError(
                f"--better: say whether a higher or a lower {metric} is better"
                f"{nearest(metric, HIGHER_IS_BETTER)}"
            )
        return known
    wanted = choice("--better", better, ("higher", "lower")) == "higher"
    if known is not None and wanted != known:
        raise ConfigError(f"--better: a {'higher' if known else 'lower'} {metric} is better.")
    return wanted


def compare_methods(
    methods: Mapping[str, Seeds],
    *,
    metric: str = "fid",
    better: str | None = None,
    scale: str = "relative",
    effect: float = EFFECT,
    planned: int | None = None,
) -> Comparison:
    """Compare methods with the first one. Several comparisons share the 5 % (Bonferroni).

    Args:
        methods: {method: {training seed: {sampling seed: value}}}, 2 to 11 of them.
        metric: Name of the figure.
        better: "higher" or "lower" for a figure whose direction is not known.
        scale: "relative" (differences of logs) or "absolute".
        effect: Relative difference that is worth finding, in (0, 1).
        planned: Training seeds of each method that were fixed beforehand: one look at the full
            level. By default there may be a look at every number of training seeds.

    Raises:
        UserError: If there are too few or too many methods or runs, or a value does not fit.
    """
    choice("--scale", scale, SCALES)
    number("--effect", effect, least=0.001, most=0.999)
    if planned is not None:
        integer("--planned", planned, least=FEWEST)
    count = len(methods) - 1
    if not 1 <= count <= MOST_COMPARISONS:
        raise UserError(f"compare: takes 2 to {MOST_COMPARISONS + 1} methods, got {len(methods)}.")
    for name, seeds in methods.items():
        _check_planned(name, seeds, planned)
    summaries = [summarise(name, seeds, scale) for name, seeds in methods.items()]
    comparison = Comparison(
        metric=metric,
        higher_is_better=direction(metric, better),
        scale=scale,
        effect=effect,
        planned=planned,
        level=FALSE_VERDICTS / count,
        methods=tuple(summaries),
        verdicts=(),
    )
    means = {name: seed_means(name, seeds, scale) for name, seeds in methods.items()}
    verdicts = [_verdict(comparison, summary, means) for summary in summaries[1:]]
    return replace(comparison, verdicts=tuple(verdicts))


def _check_planned(name: str, seeds: Seeds, planned: int | None) -> None:
    """Refuse a method with more training seeds than planned."""
    if planned is not None and len(seeds) > planned:
        raise UserError(
            f"{name}: has {len(seeds)} training seeds, but --planned is {planned}. Give the "
            "runs that were planned, or leave the option out to look at every number."
        )


def _verdict(
    comparison: Comparison, second: MethodSummary, means: Mapping[str, np.ndarray]
) -> Verdict:
    """Compare a method with the first one."""
    first = comparison.methods[0]
    relative = comparison.scale == "relative"
    shown = np.expm1 if relative else np.asarray
    every = means[first.name], means[second.name]
    fewest = min(len(row) for row in every)
    if comparison.planned is None and fewest > MOST:
        raise UserError(
            f"{first.name} and {second.name} have {fewest} training seeds each; looking at every "
            f"number of them is valid up to {MOST}. Fix it beforehand and pass it as --planned."
        )
    values = every[0][:fewest], every[1][:fewest]
    difference = float(values[1].mean() - values[0].mean())
    low = high = None
    if fewest >= FEWEST:
        for name, row in zip((first.name, second.name), values):
            if np.ptp(row) == 0:
                raise UserError(
                    f"{name}: {fewest} training seeds have the same figure; they seem to be copies "
                    "of one run."
                )
        found = welch(*values)
        margin = float(found.margin(comparison.look))
        low, high = difference - margin, difference + margin
    reason = _reason(comparison, first, second, low, high)
    better = None
    if not reason:
        better = second.name if (difference > 0) == comparison.higher_is_better else first.name
    spread = _planning_spread(every, relative)
    effect = np.log1p(comparison.effect) if relative else comparison.effect * abs(first.mean)
    needed_observed = needed_effect = None
    if spread is not None:
        needed_observed = seeds_needed(difference, spread, spread, comparison.look)
        needed_effect = seeds_needed(effect, spread, spread, comparison.look)
    return Verdict(
        first=first.name,
        second=second.name,
        better=better,
        reason=reason,
        compared=fewest,
        difference=float(shown(difference)),
        low=None if low is None else float(shown(low)),
        high=None if high is None else float(shown(high)),
        spread_known=spread is not None,
        needed_observed=needed_observed,
        needed_effect=needed_effect,
        from_field=spread is not None and fewest < FEWEST,
    )


def _planning_spread(values: Sequence[np.ndarray], relative: bool) -> float | None:
    """Return the standard deviation over training seeds with which to plan: pooled over both
    methods, or the field's for too few runs; None if that does not fit the scale."""
    if min(len(row) for row in values) >= FEWEST:
        squares = sum(((row - row.mean()) ** 2).sum() for row in values)
        return float(np.sqrt(squares / sum(len(row) - 1 for row in values)))
    return float(np.hypot(TRAINING_SPREAD, SAMPLING_SPREAD)) if relative else None


def _reason(
    comparison: Comparison,
    first: MethodSummary,
    second: MethodSummary,
    low: float | None,
    high: float | None,
) -> str:
    """Return why a comparison is inconclusive; empty if it is decided."""
    counts = first.training_seeds, second.training_seeds
    if low is None or high is None:
        text = (
            f"a verdict needs at least {FEWEST} training seeds of each method, there are "
            f"{counts[0]} and {counts[1]}"
        )
        if min(counts) == 1:
            text += "; one does not show how far training seeds lie apart"
        if comparison.scale == "relative":
            text += (
                f"; by the field's spread of FID two equal methods differ by up to "
                f"{100 * field_margin(first, second):.1f} % in 19 of 20 such comparisons"
            )
        return text
    if comparison.planned and min(counts) < comparison.planned:
        return (
            f"{comparison.planned} training seeds of each method were planned, there are "
            f"{counts[0]} and {counts[1]}"
        )
    return "the interval contains 0" if low <= 0 <= high else ""


def field_margin(first: MethodSummary, second: MethodSummary) -> float:
    """Return how far the means of two equal methods lie apart at most, in 95 % of cases, by the
    field's spread of FID: a relative difference."""
    variance = 0.0
    for method in (first, second):
        variance += TRAINING_SPREAD**2 / method.training_seeds
        variance += SAMPLING_SPREAD**2 / method.results
    return float(stdtrit(np.inf, 1 - FALSE_VERDICTS / 2) * np.sqrt(variance))
