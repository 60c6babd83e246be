"""The report of a table: its rows are the methods, their trainings the runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..registry import UserError
from .report.methods import make_method, unseeded
from .report.page import Report
from .report.runs import Analysis, GivenTable, LoggedRun, read_analyses, read_run
from .table_runs import Plan, Training
from .table_text import Sheet


def report_path(plan: Plan) -> Path:
    """Return where `ahpa table --run` writes a table's report."""
    return plan.folder / f"table_{plan.table.name}.html"


def table_report(plan: Plan, sheet: Sheet) -> Report:
    """Return the report of a table as far as its rows have been trained.

    Args:
        plan: What the table needs.
        sheet: The table with our figures; it stands at the top of the page.
    """
    notes: list[str] = []
    methods = []
    for name, trainings in methods_of(plan).items():
        runs = read_trainings(name, trainings, notes)
        if runs:
            methods.append(make_method(name, runs))
    return Report(
        methods=methods,
        title=sheet.title,
        tables=[GivenTable("Printed figures and ours", sheet.header, sheet.rows, sheet.notes)],
        analyses=measured_analyses(plan, notes),
        notes=notes,
    )


def methods_of(plan: Plan) -> Mapping[str, Sequence[Training]]:
    """Return {name of a method: its trainings}; rows that share their trainings are one method."""
    rows: dict[str, list[str]] = {}
    trainings: dict[str, list[Training]] = {}
    for number, measurements in plan.measured.items():
        own = {m.needs[-1].work_dir: m.needs[-1] for m in measurements if m.needs}
        if own:
            trained = unseeded(next(iter(own.values())).name)
            rows.setdefault(trained, []).append(plan.table.rows[number].name)
            trainings[trained] = list(own.values())
    return {f"{' = '.join(rows[trained])}: {trained}": own for trained, own in trainings.items()}


def read_trainings(name: str, trainings: Sequence[Training], notes: list[str]) -> list[LoggedRun]:
    """Read the runs of a method; those that are not there become notes."""
    found = []
    for training in trainings:
        try:
            found.append(read_run(training.work_dir))
        except UserError as error:
            notes.append(f"{name}: seed {training.seed} is missing. {error}".rstrip("."))
    return found


def measured_analyses(plan: Plan, notes: list[str]) -> list[Analysis]:
    """Return what `ahpa analyze` has measured for the table."""
    paths = {
        m.path
        for own in plan.measured.values()
        for m in own
        if m.kind != "evaluation" and m.complete
    }
    return [item for path in sorted(paths) for item in read_analyses(path.parent, notes)]
