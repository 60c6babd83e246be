"""Print a table of the AHPA paper with our figures, and run what is missing of it:
ahpa table D.17 [--scale demo] [--run] [--seeds 3]
ahpa table --list

Without --run it shows the printed figures, what each row would cost, and the results that are there
already. --run trains, samples and evaluates every missing cell (a config with a training seed), one
after another, in work_dirs/tables/SCALE; rows and tables with the same config share it. At its end
it prints the table and writes a report, one HTML page. Kill it at any point and give the same
command again: it continues.

A scale says how long and on what rows are trained and how they are evaluated: demo (minutes a row
on two CPU cores), paper, or a .json file of yours. See docs/tables.md.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.errors import UserError
from ..registry.validation import integer, positive_int
from .common import PAGES, make_parser, refuse_empty, refuse_ending, run_command

if TYPE_CHECKING:
    from ..analysis.table_cells import Execute
    from ..analysis.table_runs import Plan, Training
    from ..analysis.tables import Scale, Table

LAUNCHERS = ("none", "slurm", "pytorch")
FORMATS = ("text", "csv", "markdown", "latex")
SUFFIXES = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
MOST_SEEDS = 100


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "table")
    add = parser.add_argument
    add("table", nargs="?", metavar="ID", help="such as D.17, 3 or field")
    add("--list", action="store_true", help="list all tables and the rows that can be run")
    add("--scale", default="demo", metavar="NAME", help="demo (default), paper or a .json file")
    add("--run", action="store_true", help="train, sample and evaluate what is missing")
    add("--seeds", type=int, default=3, metavar="N", help="training seeds 0 .. N-1; default 3")
    add("--rows", nargs="+", metavar="ROW", help="only rows whose name or config contains this")
    add(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="slurm: an array job; pytorch: torchrun",
    )
    add("--processes", type=int, metavar="N", help="processes of torchrun; default one a GPU")
    add(
        "--sbatch",
        default="",
        metavar="OPTIONS",
        help='options of sbatch, such as "--partition=gpu --gpus=1 --time=24:00:00"',
    )
    add("--dry-run", action="store_true", help="with --run: print what would be run")
    add("--data", metavar="DIR", help="training data instead of the scale's")
    add("--vae", metavar="ID_OR_PATH", help="autoencoder instead of the scale's")
    add("--reference", metavar="FILE", help="reference set instead of the scale's")
    add("--prompts", metavar="FILE", help="one prompt a line, for tables of text to image")
    add("--work-dir", default="work_dirs/tables", metavar="DIR", help="default work_dirs/tables")
    add("--force", action="store_true", help="show figures of unlike protocols side by side")
    add("--format", choices=FORMATS, help="default text, or what the ending of --out says")
    add("--out", type=Path, metavar="FILE", help="write the table to a file as well")
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help="write a report as well; with --run, default WORK_DIR/SCALE/table_ID.html",
    )
    add("--cell", metavar="NAME", help="with --run: only this cell, such as sit-b_matched_seed-0")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 if a cell failed, 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None = None, *, execute: "Execute | None" = None) -> int:
    """Run the command. Raises UserError for a mistake.

    Args:
        arguments: The command line.
        execute: Runs the cells' commands; by default as processes.
    """
    args = parse(arguments)
    check_options(args)

    from ..analysis.table_report import report_path
    from ..analysis.tables import load_scale, load_table

    scale = load_scale(args.scale)
    if args.list:
        return show(args, list_tables(scale))
    table = chosen_rows(load_table(args.table), args.rows)
    plan = plan_of(args, table, scale)
    if not args.run:
        return show_state(args, plan)
    configs = resolved(plan)
    check_run(plan, configs)
    if args.launcher == "slurm":
        return submit(args, plan, configs)
    failures = run_cells(args, plan, configs, execute)
    if args.dry_run:
        return 0
    if args.cell is None:
        args.report = args.report or report_path(plan)
        show_results(args, plan, same_notes(plan, configs))
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def check_options(args: argparse.Namespace) -> None:
    """Check the options before anything is read. Raises UserError for a mistake."""
    refuse_empty(
        scale=args.scale,
        data=args.data,
        vae=args.vae,
        reference=args.reference,
        prompts=args.prompts,
        work_dir=args.work_dir,
        cell=args.cell,
    )
    integer("--seeds", args.seeds, least=1, most=MOST_SEEDS)
    if args.processes is not None:
        positive_int("--processes", args.processes)
        if args.launcher == "none":
            raise UserError("--processes: needs --launcher pytorch or slurm.")
    if bool(args.table) == args.list:
        raise UserError("table: give either a table's ID, such as D.17, or --list.")
    for name in ("cell", "dry_run", "sbatch"):
        if vars(args)[name] and not args.run:
            raise UserError(f"--{name.replace('_', '-')}: has no meaning without --run.")
    if args.sbatch and args.launcher != "slurm":
        raise UserError("--sbatch: needs --launcher slurm.")
    if args.report is not None:
        refuse_ending("--report", args.report, PAGES)
        if args.list or args.cell or args.dry_run or (args.run and args.launcher == "slurm"):
            raise UserError(
                "--report: is written with a table; --list, --cell, --dry-run and --run with "
                "--launcher slurm print none."
            )
    if args.format is None:
        args.format = SUFFIXES.get(args.out.suffix, "text") if args.out else "text"


def chosen_rows(table: "Table", wanted: "list[str] | None") -> "Table":
    """Return a table with the rows that are asked for. Raises UserError if there are none."""
    if not wanted:
        return table
    from dataclasses import replace

    rows = tuple(row for row in table.rows if any(w in row.name or w in row.config for w in wanted))
    if not rows:
        names = ", ".join(row.name for row in table.rows)
        raise UserError(f"--rows: Table {table.name} has no such row; it has: {names}.")
    return replace(table, rows=rows)


def plan_of(args: argparse.Namespace, table: "Table", scale: "Scale") -> "Plan":
    """Return what the table needs."""
    from ..analysis.table_runs import make_plan

    return make_plan(
        table,
        scale,
        Path(args.work_dir),
        seeds=args.seeds,
        data=args.data,
        vae=args.vae,
        reference=args.reference,
        prompts=args.prompts,
    )


def config_of(training: "Training") -> dict[str, Any]:
    """Return the checked config of a training. Raises ConfigError, naming the config."""
    from ..registry import ConfigError
    from . import train

    try:
        return train.training_config(train.parse(training.arguments()))
    except ConfigError as error:
        raise ConfigError(f"{training.config}: {error}") from error


def resolved(plan: "Plan") -> dict[str, dict[str, Any]]:
    """Return {config: the checked config of its training}, which finds mistakes before anything
    is run."""
    found: dict[str, dict[str, Any]] = {}
    for training in plan.trainings():
        if training.config not in found:
            found[training.config] = config_of(training)
    return found


def check_run(plan: "Plan", configs: "Mapping[str, dict[str, Any]]") -> None:
    """Check the metrics, protocols and prompts of a plan. Raises UserError."""
    from ..analysis.protocols import read_protocol
    from ..evaluation.metrics import build_metrics
    from ..registry import BACKBONES

    for name, config in configs.items():
        takes = BACKBONES.get(config["model"]["backbone"]["type"]).takes
        if plan.prompts is not None and takes != "prompts":
            raise UserError(
                f"prompts: {name} takes {takes}; leave out --prompts, or `prompts` of the scale."
            )

    for measurements in plan.measured.values():
        for measurement in measurements:
            if measurement.kind == "evaluation":
                protocol = read_protocol(
                    measurement.options["protocol"], f"scale {plan.scale.name}"
                )
                build_metrics(protocol.metrics)


# ---- running --------------------------------------------------------------------------------


def run_cells(
    args: argparse.Namespace,
    plan: "Plan",
    configs: "Mapping[str, dict[str, Any]]",
    execute: "Execute | None",
) -> dict[str, str]:
    """Run the missing cells, or print them with --dry-run; returns the failures."""
    from ..analysis.table_cells import in_a_process, process_command, run_plan

    processes = process_count(args)
    missing = plan.missing()
    done = len(plan.cells()) - len(missing)
    print(f"Table {plan.table.name}: {len(missing)} cells to run, {done} complete; {plan.folder}")
    if args.dry_run:
        for own in missing.values():
            for measurement in own:
                commands = [t.command() for t in measurement.needs if not t.complete]
                for command in [*commands, measurement.command()]:
                    print(shlex.join(process_command(command, processes)))
        return {}
    return run_plan(
        plan,
        execute=execute or in_a_process(processes),
        resolve=lambda training: configs[training.config],
        say=say,
        only=args.cell,
    )


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def process_count(args: argparse.Namespace) -> int:
    """Return the number of processes of a cell's commands."""
    if args.launcher == "none":
        return 1
    if args.processes is not None:
        return int(args.processes)
    if args.launcher == "slurm":
        return 1

    import torch

    return max(1, torch.cuda.device_count())


def submit(args: argparse.Namespace, plan: "Plan", configs: "Mapping[str, dict[str, Any]]") -> int:
    """Write the array job of the missing cells, and submit it unless --dry-run is given."""
    from ..analysis.table_cells import check_prompts, make_reference, slurm_script, submit
    from ..registry.files import write_file

    cells = list(plan.missing())
    if not cells:
        print("nothing is missing")
        return 0
    script = slurm_script(plan, cells, cell_command(args))
    if args.dry_run:
        print(script, end="")
        return 0
    check_prompts(plan)
    make_reference(plan, lambda training: configs[training.config], say)
    path = plan.folder / f"table_{plan.table.name}.sbatch"
    write_file(path, script.encode())
    (plan.folder / "logs").mkdir(exist_ok=True)
    print(submit(path, shlex.split(args.sbatch)))
    print(f"{path}: {len(cells)} cells. When they are done, the same command without --run shows")
    print("the table, and with --report FILE it writes the report.")
    return 0


def cell_command(args: argparse.Namespace) -> list[str]:
    """Return the command with which a task of an array job runs its cell."""
    scale = str(Path(args.scale).resolve()) if args.scale.endswith(".json") else args.scale
    command = [sys.executable, "-m", "ahpa.cli.main", "table", args.table, "--run"]
    command += ["--scale", scale, "--seeds", str(args.seeds), "--work-dir", args.work_dir]
    for name in ("data", "vae", "reference", "prompts"):
        if vars(args)[name]:
            command += [f"--{name}", vars(args)[name]]
    if args.processes and args.processes > 1:
        command += ["--launcher", "pytorch", "--processes", str(args.processes)]
    return command


# ---- showing --------------------------------------------------------------------------------


def show(args: argparse.Namespace, text: str) -> int:
    """Print a table, and write it to --out."""
    from ..registry.files import write_file

    if args.out is not None:
        write_file(args.out, text.encode())
    print(text, end="")
    return 0


def list_tables(scale: "Scale") -> str:
    """Return the list of all tables."""
    from ..analysis.table_text import Sheet, as_text
    from ..analysis.tables import load_table, table_paths

    rows, left_out = [], []
    for name in table_paths():
        table = load_table(name)
        reasons: dict[str, int] = {}
        for row in table.rows:
            if row.why_not:
                reasons[row.why_not] = reasons.get(row.why_not, 0) + 1
        figures = ", ".join(table.figures) or "-"
        rows.append([name, table.title, f"{len(table.runnable)} of {len(table.rows)}", figures])
        left_out += [f"{name}: {count} not run: {why}" for why, count in reasons.items()]
    header = ["table", "title", "rows that can be run", "figures"]
    return as_text(Sheet("The tables; 1 to I.21 are AHPA's", header, rows, left_out))


def show_state(args: argparse.Namespace, plan: "Plan") -> int:
    """Print the results that are there, and what the rest would cost."""
    from ..analysis.table_costs import cost_notes, count_rows

    configs = resolved(plan)
    costs = count_rows(plan, lambda training: configs[training.config])
    return show_results(args, plan, [*same_notes(plan, configs), *cost_notes(plan, costs)])


def same_notes(plan: "Plan", configs: "Mapping[str, dict[str, Any]]") -> list[str]:
    """Say which rows are the same at this scale."""
    from ..analysis.table_runs import equal_rows

    groups = equal_rows(plan, lambda training: configs[training.config])
    return [f"THE SAME AT THIS SCALE, not to be compared: {' = '.join(g)}" for g in groups]


def show_results(args: argparse.Namespace, plan: "Plan", more: "list[str] | None" = None) -> int:
    """Print our figures beside the printed ones, and write the report if one is wanted."""
    from dataclasses import replace

    from ..analysis.report.page import write_report
    from ..analysis.table_report import table_report
    from ..analysis.table_results import gather
    from ..analysis.table_text import FORMATS, results_csv, results_sheet

    results = gather(plan, force=args.force)
    sheet = results_sheet(results)
    sheet = replace(sheet, notes=[*(more or []), *sheet.notes])
    show(args, results_csv(results) if args.format == "csv" else FORMATS[args.format](sheet))
    if args.report is not None:
        size = write_report(table_report(plan, sheet), args.report)
        print(f"report: {args.report} ({size / 1e6:.1f} MB)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
