"""The report: verdicts, then sections on tables, runs, curves, samples, routers, diagnostics, cost
and differences, joined to one page without any request to the network."""

import base64
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ... import __version__
from ...evaluation.protocol import UNKNOWN
from ...evaluation.results import FoundResult
from ...evaluation.verdict_text import verdict_lines
from ...registry.files import write_file
from .chart import LOOKS, Series, dot_chart, line_chart, map_chart, swatch
from .html import BLANK, Html, bullets, data_uri, details, join, paragraph, table, tag
from .methods import (
    BANDS,
    Judged,
    Method,
    Point,
    better_text,
    config_differences,
    figure_cell,
    judge,
    kind_of,
    log_curve,
    logged_keys,
    metric_curve,
    metric_names,
    of_kind,
    protocol_rows,
    seed_curve,
    training_hours,
)
from .pictures import chosen_steps, embed, embed_analysis, with_grids
from .runs import Analysis, GivenTable, LoggedRun, shown

MOST_LINES = 8  # a group of more levels is drawn as a map
FEW_METHODS = 4  # that are listed in a sentence
FEW_VERDICTS = 6  # of more, those that decided nothing are closed at first
FEW_RESULTS = 8  # that are named
FEW_ROWS = 25  # a longer table of differences is closed at first
SHORT_COMMIT = 12  # characters
MOST_ROWS = 60  # of an analysis; the CSV has all
PICTURES = ("pca",)  # diagnostics whose colours are data and stay in the dark
DIAGNOSTICS = {  # names of `ahpa analyze` for the reader
    "gsnr": "Gradient signal-to-noise ratio",
    "router": "Router over t and over training",
    "pca": "Principal components",
    "cost": "Cost, counted and measured",
    "target": "Targets",
    "probe": "Probe",
}
BAND_TEXT = {
    "range": "the band is the range over seeds, from the smallest to the largest",
    "stderr": "the band is the mean ± the standard error over seeds",
}


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Attributes:
        methods: The methods with their runs.
        title: Title of the page; None for the methods' names.
        baseline: Name of the method to compare with; None for the first one.
        band: What bands show, "range" or "stderr".
        steps: Largest number of iterations at which samples are shown.
        tables: Further tables.
        analyses: Further results of `ahpa analyze`.
        notes: What could not be read of these.
    """

    methods: Sequence[Method]
    title: str | None = None
    baseline: str | None = None
    band: str = BANDS[0]
    steps: int = 6
    tables: Sequence[GivenTable] = ()
    analyses: Sequence[Analysis] = ()
    notes: Sequence[str] = field(default=())

    @property
    def runs(self) -> list[LoggedRun]:
        """All runs."""
        return [run for method in self.methods for run in method.runs]

    @property
    def results(self) -> list[FoundResult]:
        """All results of `ahpa evaluate`."""
        return [found for method in self.methods for found in method.results]

    @property
    def heading(self) -> str:
        """Title of the page."""
        return self.title or " and ".join(method.name for method in self.methods)


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        name: Its id.
        title: Its heading.
        content: What it shows.
    """

    name: str
    title: str
    content: Html


def write_report(report: Report, path: Path) -> int:
    """Write a report. Returns its size in bytes. Raises UserError if it cannot be written."""
    data = page(report).encode()
    write_file(path, data)
    return len(data)


def page(report: Report) -> str:
    """Return the whole page."""
    judged = judge(report.methods, report.baseline)
    sections = [
        *([tables_section(report)] if report.tables else []),
        runs_section(report),
        evaluation_section(report),
        curves_section(report),
        samples_section(report),
        policy_section(report),
        diagnostics_section(report),
        cost_section(report),
        differences_section(report),
        versions_section(report),
    ]
    style = asset("page.css") + "".join(hiding_rule(i) for i in range(len(report.methods)))
    script = asset("page.js")
    links = [tag("li", tag("a", part.title, href=f"#{part.name}")) for part in sections]
    main = [tag("section", tag("h2", part.title), part.content, id=part.name) for part in sections]
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#runs", class_="skip"),
        header(report, judged),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        legend(report),
        tag("main", *main),
        footer(report),
        tag("script", Html(script)),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy_of(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"ahpa {__version__}"),
        tag("title", report.heading),
        tag("style", Html(style)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def asset(name: str) -> str:
    """Return a file of the page that is the same for every report."""
    return files("ahpa").joinpath("assets", "report", name).read_text(encoding="utf-8")


def policy_of(script: str) -> str:
    """Return the page's security policy: no request to any place, and this script alone."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def hiding_rule(number: int) -> str:
    """Return the style that hides a method whose box is not ticked."""
    return f"body:has(#show{number}:not(:checked)) .own{number} {{ display: none; }}\n"


# ---- top and bottom -----------------------------------------------------------------------------


def header(report: Report, judged: Sequence[Judged]) -> Html:
    """Return the title, what is compared, and the verdicts."""
    count = len(report.runs)
    runs = "1 run" if count == 1 else f"{count} runs"
    methods = "1 method" if len(report.methods) == 1 else f"{len(report.methods)} methods"
    text = f"{runs} of {methods}" if report.methods else "No run has been trained"
    if 0 < len(report.methods) <= FEW_METHODS:
        each = (f"{m.name} ({seeds_text(m)}; {iterations_text(m)})" for m in report.methods)
        text += f": {'; '.join(each)}"
    return tag(
        "header",
        tag("h1", report.heading),
        paragraph(f"{text}."),
        tag("h2", "Verdicts", id="verdicts"),
        *verdicts(report, judged),
    )


def verdicts(report: Report, judged: Sequence[Judged]) -> list[Html]:
    """Return all verdicts; of many, those that decided nothing are closed at first."""
    every = [item for figure in judged for item in verdict_items(report, figure)]
    if not every:
        line = tag("li", paragraph(no_verdict(report)), class_="inconclusive")
        return [tag("ul", line, class_="verdicts")]
    decided = [item for item in every if item.decided]
    rest = [item for item in every if not item.decided]
    if len(every) <= FEW_VERDICTS:
        return [tag("ul", *(item.content for item in every), class_="verdicts")]
    parts = []
    if decided:
        parts.append(tag("ul", *(item.content for item in decided), class_="verdicts"))
    if rest:
        whole = tag("ul", *(item.content for item in rest), class_="verdicts")
        parts.append(details(f"{len(rest)} of {len(every)} comparisons decide nothing", whole))
    return parts


def seeds_text(method: Method) -> str:
    """Return the seeds of a method in words."""
    seeds = [str(run.seed) for run in method.runs if run.seed is not None]
    if not seeds:
        return "seed not recorded"
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"


def iterations_text(method: Method) -> str:
    """Return how far the runs of a method are."""
    states = list(dict.fromkeys(run.state for run in method.runs))
    return states[0] if len(states) == 1 else " / ".join(states)


def no_verdict(report: Report) -> str:
    """Return why there is no verdict."""
    if not report.methods:
        return "No verdict: there are no runs."
    if len(report.methods) < 2:
        return "No verdict: there is one method, so nothing is compared."
    if not report.results:
        return "No verdict: no run has been evaluated (`ahpa evaluate` writes evaluations/*.json)."
    return "No verdict: no figure was measured for two methods under the same protocol."


class VerdictItem(NamedTuple):
    """A verdict on the page.

    Attributes:
        decided: Whether it says which method is better.
        content: Its item of a list.
    """

    decided: bool
    content: Html


def verdict_items(report: Report, judged: Judged) -> list[VerdictItem]:
    """Return the verdicts on one figure."""
    at = "" if judged.iteration is None else f" at iteration {judged.iteration:,}"
    what = f"{judged.metric} ({better_text(judged.metric)}){at}"
    several = len({item.result.protocol_hash for item in report.results}) > 1
    what += f", protocol {judged.protocol}" if several else ""
    if judged.comparison is None:
        text = paragraph(
            badge("no verdict"), tag("strong", f"{what}: "), f"{judged.problem.rstrip('.')}."
        )
        return [VerdictItem(False, tag("li", text, class_="inconclusive"))]
    items = []
    for verdict in judged.comparison.verdicts:
        first, *more = verdict_lines(judged.comparison, verdict)
        decided = verdict.better is not None
        label = "decided" if decided else "inconclusive"
        content = [paragraph(badge(label), tag("strong", f"{what}: "), f"{first}.")]
        if more:
            why = (paragraph(sentence(line)) for line in more)
            content.append(details("Why, and what would decide it", *why))
        items.append(VerdictItem(decided, tag("li", *content, class_=label)))
    return items


def sentence(line: str) -> str:
    """Return a line with a capital at its beginning and single spaces."""
    text = " ".join(line.split())
    return text[:1].upper() + text[1:]


def badge(text: str) -> Html:
    """Return a short word on a coloured ground."""
    return tag("span", text, class_="badge")


def legend(report: Report) -> Html:
    """Return the methods with their colours, each with a box that hides it everywhere."""
    labels = []
    for number, method in enumerate(report.methods):
        box = tag("input", type="checkbox", id=f"show{number}", checked=True)
        labels.append(tag("label", box, swatch(number), method.name))
    return tag("fieldset", tag("legend", "Show methods"), *labels, class_="legend")


def footer(report: Report) -> Html:
    """Return when and by what the page was made, and what is missing."""
    notes = [f"{run.name}: {note}" for run in report.runs for note in run.notes]
    notes += [note for method in report.methods for note in method.notes]
    notes += report.notes
    if len(report.methods) > LOOKS:
        notes.append(f"there are {LOOKS} looks of lines, so that some methods share one")
    missing = [tag("h2", "Missing or left out", id="missing"), bullets(notes)] if notes else []
    made = time.strftime("%Y-%m-%d %H:%M")
    return tag("footer", *missing, paragraph(f"Made {made} by ahpa {__version__}, `ahpa report`."))


# ---- runs ---------------------------------------------------------------------------------------


def runs_section(report: Report) -> Section:
    """Return the table of runs."""
    rows = []
    for method in report.methods:
        for run in method.runs:
            last = run.records[-1] if run.records else {}
            seed = BLANK if run.seed is None else str(run.seed)
            loss = rounded(last.get("loss"))
            rows.append([run.name, method.name, seed, run.state, loss, str(len(run.results))])
    columns = ["Run", "Method", "Seed", "State", "Last loss", "Results"]
    content = table("What was trained, and how far it is", columns, rows, numbers=False)
    return Section("runs", "Runs", content)


def rounded(value: float | None) -> str:
    """Return a figure for a table."""
    return BLANK if value is None or not math.isfinite(value) else f"{value:.4g}"


# ---- evaluation ---------------------------------------------------------------------------------


def evaluation_section(report: Report) -> Section:
    """Return the figures of `ahpa evaluate`: tables, one dot a seed, curves over checkpoints."""
    title = "Evaluation"
    if not report.results:
        text = "No run has been evaluated; `ahpa evaluate` writes evaluations/*.json into a run."
        return Section("evaluation", title, paragraph(text))
    parts: list[Html | None] = [
        paragraph(
            "Each dot is a training seed (the mean of its sampling seeds), the stroke is their "
            "mean. Figures stand together only if their protocols are equal. Each figure is "
            "judged by itself; false verdicts are at most 5 % a figure."
        )
    ]
    kinds = dict.fromkeys(kind_of(found.result) for found in report.results)
    for kind in kinds:
        parts += evaluation_of_kind(report, kind, named=len(kinds) > 1)
    return Section("evaluation", title, join(parts))


def evaluation_of_kind(report: Report, kind: str, *, named: bool) -> list[Html | None]:
    """Return the figures under one kind of protocol."""
    metrics = metric_names(report.methods)
    charts, rows, notes = [], [], []
    columns = ["Method"]
    cells: dict[str, list[str]] = {method.name: [] for method in report.methods}
    for metric in metrics:
        last = {m.name: last_results(of_kind(m, metric, kind)) for m in report.methods}
        if not any(last.values()):
            continue
        columns.append(f"{metric} ({better_text(metric)})")
        dots = []
        for number, method in enumerate(report.methods):
            cell = figure_cell(method.name, last[method.name], metric)
            at = iterations_of(last[method.name])
            cells[method.name].append(f"{cell.text}{at}")
            dots.append((method.name, cell.values, number, f"own{number}"))
        charts.append(dot_chart(metric, dots, x=f"{metric}, {better_text(metric)}"))
        curves = metric_series(report, metric, kind)
        if any(len(line.points) > 1 for line in curves):
            name = f"{metric} over training"
            charts.append(line_chart(name, curves, x_label="iteration"))
    for name, found in cells.items():
        if any(not text.startswith(BLANK) for text in found):
            rows.append([name, *found])
        else:
            notes.append(f"{name} has no result under this protocol.")
    label = f"Protocol {kind} (without the iteration)" if named else None
    caption = "Figures at the last iteration evaluated: mean (smallest to largest)"
    return [
        tag("h3", label) if label else None,
        tag("div", *charts, class_="charts"),
        table(caption, columns, rows),
        bullets(notes),
    ]


def metric_series(report: Report, metric: str, kind: str) -> list[Series]:
    """Return the curves of a figure over checkpoints."""
    found = []
    for number, method in enumerate(report.methods):
        points = metric_curve(method, metric, kind, report.band)
        found.append(Series(method.name, points, number, f"own{number}"))
    return found


def last_results(found: Sequence[FoundResult]) -> list[FoundResult]:
    """Return the results of the last iteration among them."""

    def at(item: FoundResult) -> int:
        return item.iteration if isinstance(item.iteration, int) else -1

    last = max((at(item) for item in found), default=-1)
    return [item for item in found if at(item) == last]


def iterations_of(found: Sequence[FoundResult]) -> str:
    """Return the iteration of results, to be put behind a figure."""
    known = [item.iteration for item in found if isinstance(item.iteration, int)]
    return f" at {known[0]:,}" if known else ""


# ---- curves -------------------------------------------------------------------------------------


def curves_section(report: Report) -> Section:
    """Return the curves of everything that is logged."""
    keys = logged_keys(report.methods)
    main = [k for k in keys if k == "loss" or k.startswith(("loss/", "eval"))]
    curves = {key: [log_curve(m, key, report.band) for m in report.methods] for key in keys}
    charts = {key: curve_chart(report, key, found) for key, found in curves.items()}
    first = [chart for key in main if (chart := charts[key])]
    other = [chart for key in keys if key not in main and (chart := charts[key])]
    if not first and not other:
        text = "Nothing has been logged yet."
        return Section("curves", "Training curves", paragraph(text))
    one = all(len(method.runs) == 1 for method in report.methods)
    band = "each line is one run" if one else f"each line is a method's mean, {band_text(report)}"
    text = (
        f"{band[0].upper()}{band[1:]}. Each point is the mean since the log line before it. A line "
        "is thin where a seed has ended."
    )
    slider = tag(
        "p",
        tag("label", "Smoothing of the lines (not of the bands) ", for_="smoothing"),
        tag("input", type="range", id="smoothing", min=0, max=0.98, step=0.02, value=0),
        " ",
        tag("output", "0.00", id="smoothing-value", for_="smoothing"),
        class_="controls",
        hidden=True,
    )
    count = f"{len(other)} more: terms without their weights, diagnostics, speed"
    content = join(
        [
            paragraph(text),
            slider,
            tag("div", *first, class_="charts"),
            details(count, tag("div", *other, class_="charts")) if other else None,
            details("The last logged figures as a table", last_values(report, curves)),
        ]
    )
    return Section("curves", "Training curves", content)


def band_text(report: Report) -> str:
    """Return what the bands show."""
    return BAND_TEXT[report.band]


def curve_chart(report: Report, key: str, curves: Sequence[Sequence[Point]]) -> Html | None:
    """Return the chart of a logged figure; None if no method has points of it."""
    series = []
    for number, (method, points) in enumerate(zip(report.methods, curves, strict=True)):
        series.append(Series(method.name, points, number, f"own{number}"))
    return line_chart(key, series, x_label="iteration") if any(curves) else None


def last_values(report: Report, curves: Mapping[str, Sequence[Sequence[Point]]]) -> Html:
    """Return the last point of each curve as a table."""
    rows = []
    for key, found in curves.items():
        cells = []
        for points in found:
            if not points:
                cells.append(BLANK)
                continue
            last = points[-1]
            ends = f" ({last.low:.4g} to {last.high:.4g})" if last.seeds > 1 else ""
            cells.append(f"{last.mean:.4g}{ends} at {last.x:,.0f}")
        rows.append([key, *cells])
    columns = ["Figure", *(method.name for method in report.methods)]
    return table(f"Last points; {band_text(report)}", columns, rows)


# ---- samples ------------------------------------------------------------------------------------


def samples_section(report: Report) -> Section:
    """Return grids of samples at equal steps, side by side."""
    title = "Samples at equal steps"
    found = [
        (number, method, run)
        for number, method in enumerate(report.methods)
        if (run := with_grids(method.runs)) is not None
    ]
    if not found:
        text = "No run has grids of samples; the hook SampleGrids draws them during training."
        return Section("samples", title, paragraph(text))
    steps = chosen_steps([run.grids for _, _, run in found], report.steps)
    names = "; ".join(f"{method.name}: {run.name}" for _, method, run in found)
    which = names if len(found) <= FEW_METHODS else "the first seed that has grids"
    lines = [
        "One run of each method, with averaged weights, from the same noise at every step "
        f"({which}). One row of a grid for each class or prompt."
    ]
    alone = [method.name for method in report.methods if with_grids(method.runs) is None]
    if alone:
        lines.append(f"No grids: {', '.join(alone)}.")
    content: list[Html | None] = [paragraph(line) for line in lines]
    if not steps:
        content.append(paragraph("No step has a grid of every method; the last of each is shown."))
        last = [(number, method, run, max(run.grids)) for number, method, run in found]
        content.append(tag("div", *(grid(*item, shared=False) for item in last), class_="grids"))
    for step in steps[::-1]:
        content.append(tag("h3", f"Iteration {step:,}"))
        shown_grids = [grid(number, method, run, step) for number, method, run in found]
        content.append(tag("div", *shown_grids, class_="grids"))
    return Section("samples", title, join(content))


def grid(number: int, method: Method, run: LoggedRun, step: int, *, shared: bool = True) -> Html:
    """Return one grid of samples; `shared` if the step stands above it."""
    picture = embed(run.grids[step])
    caption = tag("figcaption", method.name if shared else f"{method.name}, iteration {step:,}")
    if picture is None:
        text = f"{run.grids[step].name} of {run.name} cannot be read."
        return tag("figure", caption, paragraph(text), class_=f"own{number}")
    uri, width, height = picture
    seed = "" if run.seed is None else f" with seed {run.seed}"
    words = f"Samples of {method.name}{seed} after {step:,} iterations, one row for each class"
    image = tag("img", src=uri, width=width, height=height, alt=words)
    return tag("figure", caption, image, class_=f"own{number}")


# ---- routers ------------------------------------------------------------------------------------


def policy_section(report: Report) -> Section:
    """Return the routers' policies over t."""
    title = "Router policy"
    parts: list[Html] = []
    for number, method in enumerate(report.methods):
        for router in dict.fromkeys(p.router for run in method.runs for p in run.policies):
            parts.append(policy(report, number, method, router))
    if not parts:
        text = "No method has a router that wrote its policy (hook RoutingPolicy)."
        return Section("policy", title, paragraph(text))
    lines = (
        "How the router weighs groups (beta) and the levels in a group (alpha) over t, at the last "
        f"snapshot; with several seeds {band_text(report)}."
    )
    return Section("policy", title, join([paragraph(lines), *parts]))


def policy(report: Report, number: int, method: Method, router: str) -> Html:
    """Return the policy of one router of a method."""
    found = [p for run in method.runs for p in run.policies if p.router == router]
    columns = list(dict.fromkeys(column for p in found for column in p.table))
    betas = [c.removeprefix("beta_") for c in columns if c.startswith("beta_")]
    charts = []
    for beginning, name in [
        ("beta_", "beta between groups"),
        *((f"alpha_{group}_", f"alpha in {group}") for group in betas),
        ("entropy_", "entropy in nats"),
    ]:
        own = [column for column in columns if column.startswith(beginning)]
        if len(own) > 1 or (own and beginning == "entropy_"):
            charts.append(policy_chart(report, name, found, own, beginning))
    iterations = sorted({p.iteration for p in found})
    at = " and ".join(f"{iteration:,}" for iteration in iterations)
    heading = f"{method.name}: {router}, iteration {at}"
    return tag(
        "div", tag("h3", heading), tag("div", *charts, class_="charts"), class_=f"own{number}"
    )


def policy_chart(
    report: Report, name: str, found: Sequence[Any], columns: Sequence[str], beginning: str
) -> Html:
    """Return one chart of a policy."""
    lines = []
    for look, column in enumerate(columns):
        tables = [policy.table for policy in found if column in policy.table]
        curves = [dict(zip(own["t"], own[column], strict=True)) for own in tables]
        label = column.removeprefix(beginning)
        lines.append(Series(label, seed_curve(curves, report.band), look))
    if len(lines) > MOST_LINES:
        t = [point.x for point in lines[0].points]
        rows = [(line.label, [point.mean for point in line.points]) for line in lines]
        return map_chart(name, t, rows)
    most = max(1.0, *(point.high for line in lines for point in line.points))
    return line_chart(
        name, lines, x_label="t (0 data, 1 noise)", legend=True, y_range=(0.0, 1.03 * most)
    )


# ---- diagnostics --------------------------------------------------------------------------------


def diagnostics_section(report: Report) -> Section:
    """Return what `ahpa analyze` has written, but for the cost."""
    title = "Diagnostics"
    found = [item for item in analyses_of(report) if item.kind != "cost"]
    if not found:
        text = (
            "No diagnostics; `ahpa analyze gsnr RUN...` (also router, pca, target, probe) writes "
            "them to RUN/analysis, where this report finds them."
        )
        return Section("diagnostics", title, paragraph(text))
    return Section("diagnostics", title, join(analysis(item) for item in found))


def analyses_of(report: Report) -> list[Analysis]:
    """Return all results of `ahpa analyze`, each file once."""
    every = [item for run in report.runs for item in run.analyses] + list(report.analyses)
    return list({item.path.resolve(): item for item in every}.values())


def analysis(item: Analysis) -> Html:
    """Return a result of `ahpa analyze`: picture, notes, figures and the command."""
    record = item.content.get("record")
    record = record if isinstance(record, Mapping) else {}
    where = item.path.parent.parent.name or item.path.parent.name
    notes = item.content.get("notes")
    lines = [str(line) for line in notes] if isinstance(notes, list) else []
    name = analysis_name(item, where)
    picture = embed_analysis(item.path)
    if picture is None:
        image = paragraph("Its picture is not there or cannot be read.")
    else:
        words = f"{name} of {where}. {' '.join(lines) or 'The figures are in the table below.'}"
        inverts = "" if item.kind.startswith(PICTURES) else " inverts"
        drawn = tag("img", src=picture, alt=words)
        image = tag(
            "div",
            drawn,
            class_=f"scroll paper{inverts}",
            tabindex=0,
            role="region",
            aria_label=f"Picture: {name}",
        )
    command = record.get("command")
    made = " ".join(str(part) for part in command) if isinstance(command, list) else None
    return tag(
        "div",
        tag("h3", f"{name} ({where})"),
        image,
        spaced(lines) if any("  " in line for line in lines) else bullets(lines),
        analysis_rows(item, name),
        paragraph("Command: ", tag("code", made), class_="soft") if made else None,
    )


def analysis_name(item: Analysis, where: str) -> str:
    """Return the name of an analysis for a reader, such as "Principal components: blocks"."""
    kind, *parts = item.kind.replace(f"_{where}", "").split("_")
    return ": ".join([DIAGNOSTICS.get(kind, kind), *([" ".join(parts)] if parts else [])])


def spaced(lines: Sequence[str]) -> Html:
    """Return lines whose spaces set columns."""
    return tag(
        "pre", "\n".join(lines), class_="scroll", tabindex=0, role="region", aria_label="Notes"
    )


def analysis_rows(item: Analysis, name: str) -> Html | None:
    """Return the figures of an analysis as a table, and as a CSV to download."""
    rows = item.content.get("rows")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    if not rows:
        return None
    columns = [str(key) for key in rows[0]]
    cells = [[shown(row.get(key)) for key in columns] for row in rows[:MOST_ROWS]]
    more = f"; the first {MOST_ROWS} of {len(rows)} rows" if len(rows) > MOST_ROWS else ""
    data = item.beside(".csv")
    link = None
    if data is not None:
        uri = data_uri(data, "text/csv")
        file = f"{item.path.stem}.csv"
        link = paragraph(tag("a", f"Download {file}", href=uri, download=file), class_="download")
    return details("Figures", table(f"{name}{more}", columns, cells), link)


# ---- cost ---------------------------------------------------------------------------------------


def cost_section(report: Report) -> Section:
    """Return the speed that was logged, and the results of `ahpa analyze cost`."""
    rows = []
    for method in report.methods:
        for run in method.runs:
            speeds = sorted(record.get("images_per_s", math.nan) for record in run.records)
            finite = [speed for speed in speeds if math.isfinite(speed)]
            median = finite[len(finite) // 2] if finite else None
            hours = training_hours(run)
            last = int(run.records[-1]["iteration"]) if run.records else 0
            images = BLANK if run.batch is None else f"{last * run.batch:,}"
            batch = BLANK if run.batch is None else f"{run.batch:,}"
            rows.append([run.name, batch, images, rounded(median), duration(hours)])
    columns = ["Run", "Batch", "Images seen", "Images/s (median)", "Time of the steps"]
    caption = "What was logged; figures of different machines are not comparable"
    found = [item for item in analyses_of(report) if item.kind == "cost"]
    parts = [table(caption, columns, rows), *(analysis(item) for item in found)]
    if not found:
        text = "Parameters, multiply-accumulates and memory: `ahpa analyze cost RUN...`."
        parts.append(paragraph(text))
    return Section("cost", "Cost", join(parts))


def duration(hours: float | None) -> str:
    """Return a duration for a reader."""
    if hours is None:
        return BLANK
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


# ---- tables and differences ---------------------------------------------------------------------


def tables_section(report: Report) -> Section:
    """Return the tables that were given."""
    parts: list[Html | None] = []
    for given in report.tables:
        parts.append(table(given.title, given.columns, given.rows, numbers=False))
        parts.append(bullets(given.notes))
    return Section("tables", "Tables", join(parts))


def differences_section(report: Report) -> Section:
    """Return in what protocols and configs differ."""
    parts = [tag("h3", "Protocols"), *protocols(report), tag("h3", "Configs")]
    names, rows = config_differences(report.methods)
    if not names:
        parts.append(paragraph("No run has a config that can be read."))
    elif not rows:
        parts.append(paragraph("All configs are equal, but for seeds and paths."))
    else:
        text = "Keys with different values; seeds, paths and launchers are left out."
        whole = table("Config differences", ["Key", *names], rows, numbers=False)
        parts.append(paragraph(text))
        parts.append(details(f"{len(rows)} keys", whole, is_open=len(rows) <= FEW_ROWS))
    return Section("differences", "What differs", join(parts))


def protocols(report: Report) -> list[Html]:
    """Return what the protocols of the results share and in what they differ."""
    if not report.results:
        return [paragraph("There are no results, hence no protocols.")]
    found = {item.result.protocol_hash: item.result.protocol for item in report.results}
    if len(found) == 1:
        (label,) = found
        count = len(report.results)
        results = "The one result has" if count == 1 else f"All {count} results have"
        rows = protocol_rows(found, differing=lambda values: True)
        whole = table(f"Protocol {label}", ["Key", "Value"], rows, numbers=False)
        return [
            paragraph(f"{results} the protocol {label}."),
            details("The protocol", whole),
        ]
    by: dict[str, list[str]] = {}
    for item in report.results:
        by.setdefault(item.result.protocol_hash, []).append(item.path.parent.parent.name)
    used = [f"{label}: {', '.join(dict.fromkeys(names))}" for label, names in by.items()]
    lines = bullets(used)
    rows = protocol_rows(
        found, differing=lambda values: len(values) > 1 or any(UNKNOWN in v for v in values)
    )
    text = f"The results have {len(found)} protocols; only equal ones are compared."
    same = protocol_rows(found, differing=lambda values: len(values) == 1)
    shared = [row[:2] for row in same]
    parts = [paragraph(text), lines]
    parts.append(table("Keys that differ", ["Key", *found], rows, numbers=False))
    if shared:
        whole = table("Shared", ["Key", "Value"], shared, numbers=False)
        parts.append(details("Keys that all share", whole))
    return [part for part in parts if part is not None]


# ---- versions -----------------------------------------------------------------------------------


def versions_section(report: Report) -> Section:
    """Return with what the results were made."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for item in report.results:
        values = version_values(item.result.provenance)
        rows.setdefault(values, []).append(f"{item.path.parent.parent.name}/{item.path.name}")
    for found in analyses_of(report):
        record = found.content.get("record")
        values = version_values(record if isinstance(record, Mapping) else {})
        rows.setdefault(values, []).append(f"{found.path.parent.parent.name}/{found.path.name}")
    if not rows:
        text = f"This report: ahpa {__version__}. Neither results nor diagnostics name others."
        return Section("versions", "Versions", paragraph(text))
    cells = [
        [", ".join(names) if len(names) <= FEW_RESULTS else f"{len(names)} results", *values]
        for values, names in rows.items()
    ]
    columns = ["Results", "Versions", "Commit", "Device"]
    content = table("With what results were made", columns, cells, numbers=False)
    return Section("versions", "Versions", content)


def version_values(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return versions, commit and device of a record for a reader."""
    versions = record.get("versions")
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {shown(value)}" for name, value in versions.items())
    commit = record.get("commit")
    commit = commit[:SHORT_COMMIT] if isinstance(commit, str) else commit
    values = (versions, commit, record.get("device"))
    return tuple(BLANK if value in (None, UNKNOWN) else shown(value) for value in values)
