"""A comparison as text, Markdown, CSV and JSON."""

import csv
import io
import json
from dataclasses import asdict, fields
from typing import Any

from .verdict import (
    FEWEST,
    MOST,
    POWER,
    SAMPLING_SPREAD,
    TRAINING_SPREAD,
    Comparison,
    MethodSummary,
    Verdict,
)

INCONCLUSIVE = "inconclusive"
FIELD = (
    f"The field's spread of FID: {100 * TRAINING_SPREAD:.1f} % over training seeds, "
    f"{100 * SAMPLING_SPREAD:.1f} % over sampling seeds (arXiv:2606.20536)."
)


def as_text(comparison: Comparison) -> str:
    """Return the lines that the command prints."""
    lines = [_heading(comparison), ""]
    width = max(len(method.name) for method in comparison.methods)
    for method in comparison.methods:
        lines.append(f"  {method.name:{width}s}  {_runs(method)}  {_mean(comparison, method)}")
    for verdict in comparison.verdicts:
        lines += ["", *verdict_lines(comparison, verdict)]
    if any(verdict.from_field for verdict in comparison.verdicts):
        lines += ["", FIELD]
    return "\n".join(lines)


def verdict_lines(comparison: Comparison, verdict: Verdict) -> list[str]:
    """Return a verdict in one to three lines."""
    outcome = f"{verdict.better} is better" if verdict.better else INCONCLUSIVE
    against = f"{verdict.second} against {verdict.first}"
    lines = [f"{against}: {_difference(comparison, verdict)}: {outcome}"]
    if verdict.better is None:
        lines.append(f"  why:  {verdict.reason}{_excluded(comparison, verdict)}.")
        lines.append(f"  next: {_advice(comparison, verdict)}")
    return lines


def as_markdown(comparison: Comparison) -> str:
    """Return a table of methods, a table of verdicts and the reasons."""
    lines = [_heading(comparison), "", "| method | runs | mean and spread |", "|---|---|---|"]
    for method in comparison.methods:
        lines.append(f"| {method.name} | {_runs(method)} | {_mean(comparison, method)} |")
    lines += ["", "| comparison | difference | verdict |", "|---|---|---|"]
    notes = []
    for verdict in comparison.verdicts:
        outcome = f"{verdict.better} is better" if verdict.better else INCONCLUSIVE
        names = f"{verdict.second} against {verdict.first}"
        lines.append(f"| {names} | {_difference(comparison, verdict)} | {outcome} |")
        if verdict.better is None:
            reason = f"{verdict.reason}{_excluded(comparison, verdict)}"
            notes.append(f"- {names}: {reason}. Next: {_advice(comparison, verdict)}")
    if any(verdict.from_field for verdict in comparison.verdicts):
        notes.append(f"- {FIELD}")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def as_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a flat row for each verdict, with the figures of both methods."""
    methods = {method.name: method for method in comparison.methods}
    rows = []
    for verdict in comparison.verdicts:
        row: dict[str, Any] = {
            "metric": comparison.metric,
            "higher_is_better": comparison.higher_is_better,
            "scale": comparison.scale,
            "level": comparison.level,
            "look": comparison.look,
            "planned": comparison.planned,
            "effect": comparison.effect,
            "verdict": "decided" if verdict.better else INCONCLUSIVE,
            **asdict(verdict),
        }
        for side, name in (("first", verdict.first), ("second", verdict.second)):
            for field in fields(MethodSummary)[1:]:
                row[f"{side}_{field.name}"] = asdict(methods[name])[field.name]
        rows.append(row)
    return rows


def as_csv(comparison: Comparison) -> str:
    """Return `as_rows` as CSV; empty cells are None."""
    rows = as_rows(comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(comparison: Comparison, **more: Any) -> str:
    """Return the whole comparison as JSON, with `more` entries."""
    return json.dumps({**asdict(comparison), "look": comparison.look, **more}, indent=1) + "\n"


# ---- parts --------------------------------------------------------------------------------------


def _heading(comparison: Comparison) -> str:
    better = "higher" if comparison.higher_is_better else "lower"
    if comparison.planned:
        rule = f"one look, planned at {comparison.planned} training seeds of each method"
    else:
        rule = "you may look after every training seed"
    count = len(comparison.verdicts)
    shared = f", over all {count} comparisons" if count > 1 else ""
    return f"{comparison.metric}, {better} is better. False verdicts: at most 5 %{shared}; {rule}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _runs(method: MethodSummary) -> str:
    text = _count(method.training_seeds, "training seed")
    if method.results != method.training_seeds:
        text += f", {method.results} results"
    return text


def _size(comparison: Comparison, value: float) -> str:
    """Return a spread: in per cent on the relative scale."""
    return f"{100 * value:.1f} %" if comparison.scale == "relative" else f"{value:.4g}"


def _mean(comparison: Comparison, method: MethodSummary) -> str:
    text = f"mean {method.mean:.4g}"
    if method.spread is not None:
        text += f", spread {_size(comparison, method.spread)}"
    if method.training_spread is not None and method.sampling_spread is not None:
        text += (
            f" (training seeds {_size(comparison, method.training_spread)}, sampling seeds "
            f"{_size(comparison, method.sampling_spread)})"
        )
    return text


def _difference(comparison: Comparison, verdict: Verdict) -> str:
    def signed(value: float) -> str:
        if comparison.scale == "absolute":
            return f"{value:+.4g}"
        percent = round(100 * value, 1)
        return f"{percent:+.1f}" if percent else "0.0"

    unit = " %" if comparison.scale == "relative" else ""
    if verdict.low is None or verdict.high is None:
        return f"{signed(verdict.difference)}{unit}, no interval"
    ends = f"interval {signed(verdict.low)} to {signed(verdict.high)}{unit}"
    methods = {method.name: method for method in comparison.methods}
    most = max(methods[name].training_seeds for name in (verdict.first, verdict.second))
    if most > verdict.compared:
        ends += f" from the first {verdict.compared} training seeds of each"
    return f"{signed(verdict.difference)}{unit}, {ends}"


def _excluded(comparison: Comparison, verdict: Verdict) -> str:
    """Return whether the interval excludes the effect that is worth finding."""
    if comparison.scale != "relative" or verdict.low is None or verdict.high is None:
        return ""
    if not -comparison.effect < verdict.low <= verdict.high < comparison.effect:
        return ""
    return f", and a difference of {100 * comparison.effect:g} % is excluded"


def _advice(comparison: Comparison, verdict: Verdict) -> str:
    """Return how many more training seeds would decide it."""
    methods = {method.name: method for method in comparison.methods}
    have = {name: methods[name].training_seeds for name in (verdict.first, verdict.second)}
    if comparison.planned and min(have.values()) < comparison.planned:
        return f"train {_more(comparison.planned, have)}, as planned."
    if not verdict.spread_known:
        return f"train {_more(FEWEST, have)}; their spread then says how many decide it."
    source = "the field's spread" if verdict.from_field else "the spread of these runs"
    effect = _needs(verdict.needed_effect, have)
    observed = _needs(verdict.needed_observed, have)
    return (
        f"{effect} if the true difference is {100 * comparison.effect:g} %, {observed} if it is "
        f"the observed one (for a power of {100 * POWER:.0f} %, by {source})."
    )


def _needs(needed: int | None, have: dict[str, int]) -> str:
    if needed is None:
        return f"more than {MOST} training seeds of each"
    if needed <= min(have.values()):
        return f"the {min(have.values())} training seeds of each suffice"
    return f"{needed} training seeds of each ({_more(needed, have)})"


def _more(needed: int, have: dict[str, int]) -> str:
    missing = {name: needed - count for name, count in have.items() if count < needed}
    if len(missing) > 1 and len(set(missing.values())) == 1:
        return f"{next(iter(missing.values()))} more of each"
    return " and ".join(f"{count} more of {name}" for name, count in missing.items())
