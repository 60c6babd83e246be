"""Runs the cells of a table that are missing, one after another, and says how far it is.

A cell that fails is reported and the others go on. Two tables may share work dirs: a cell that
another process trains is waited for.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..engine import lock
from ..evaluation.images import read_prompts
from ..registry import UserError
from ..registry.errors import printable
from ..registry.locations import PACKAGE
from .table_runs import Measurement, Plan, Training, make_training_reference

WAIT = 5  # seconds between looks at a work dir that is in use
ERROR = re.compile(r"(\[rank\d+\]: )?(error: |(?!torch\.distributed\.elastic)[\w.]+Error\b)")
TERMINATED = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ended

Execute = Callable[[Sequence[str], Path], int]
"""Runs `ahpa COMMAND...` with its output appended to a file; returns the exit code."""
Say = Callable[[str], None]
Resolve = Callable[[Training], dict[str, Any]]
"""Returns the checked config of a training."""


class Failed(Exception):
    """A command of a cell failed; the message says why."""


@dataclass
class Clock:
    """Estimates the time that is left from what trainings and measurements took so far.

    Attributes:
        left: {kind of work: how often it is still to be done}.
        took: {kind of work: seconds of each time}.
    """

    left: dict[str, int]
    took: dict[str, list[float]] = field(default_factory=dict)

    def done(self, kind: str, seconds: float | None) -> None:
        """Count a piece of work; None if it took no time because it failed or was there."""
        self.left[kind] = max(0, self.left.get(kind, 0) - 1)
        if seconds is not None:
            self.took.setdefault(kind, []).append(seconds)

    def text(self) -> str:
        """Return the time left, as "about 12 min left"; "" before every kind was seen once."""
        wanted = {kind: count for kind, count in self.left.items() if count}
        if not wanted or any(kind not in self.took for kind in wanted):
            return ""
        means = {kind: sum(self.took[kind]) / len(self.took[kind]) for kind in wanted}
        return f"about {duration(sum(means[kind] * n for kind, n in wanted.items()))} left"


def duration(seconds: float) -> str:
    """Format a duration: 50 -> "1 min", 5000 -> "1 h 23 min", 400000 -> "4.6 days"."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 72 else f"{seconds / 86400:.1f} days"


def run_plan(
    plan: Plan,
    *,
    execute: Execute,
    resolve: Resolve,
    say: Say = print,
    only: str | None = None,
) -> dict[str, str]:
    """Train and measure what is missing.

    Args:
        plan: What is needed.
        execute: Runs a command.
        resolve: Returns a training's config.
        say: Prints a line.
        only: Name of the one cell to run; None for all.

    Returns:
        {name of a cell: why it failed}.

    Raises:
        UserError: Before anything is run: the reference or the prompts are missing, or there is no
            such cell.
    """
    cells = plan.missing()
    if only is not None:
        if only not in plan.cells():
            raise UserError(f"--cell: Table {plan.table.name} has no cell {only!r}.")
        cells = {name: own for name, own in cells.items() if name == only}
    check_prompts(plan)
    make_reference(plan, resolve, say)
    failures: dict[str, str] = {}
    clock = Clock(work(cells))
    for number, (name, measurements) in enumerate(cells.items(), 1):
        head = f"[{number}/{len(cells)}] {name}"
        try:
            for measurement in measurements:
                run_measurement(plan, measurement, head, execute, clock, say)
        except (Failed, UserError) as error:
            failures[name] = str(error)
            say(f"{head}: FAILED: {error}")
            clock.left = work({key: cells[key] for key in list(cells)[number:]})
    return failures


def work(cells: Mapping[str, Sequence[Measurement]]) -> dict[str, int]:
    """Count the trainings and measurements of cells by kind."""
    found: dict[str, int] = {}
    runs = {t.work_dir for own in cells.values() for m in own for t in m.needs if not t.complete}
    if runs:
        found["training"] = len(runs)
    for own in cells.values():
        for measurement in own:
            found[measurement.kind] = found.get(measurement.kind, 0) + 1
    return found


def run_measurement(
    plan: Plan, measurement: Measurement, head: str, execute: Execute, clock: Clock, say: Say
) -> None:
    """Train what a measurement needs, then measure.

    Raises:
        Failed: If a command failed.
        UserError: If a work dir was trained otherwise.
    """
    log = plan.folder / "logs" / f"{measurement.name}.log"
    for training in measurement.needs:
        if training.complete:
            continue
        training.claim()
        wait_until_free(training.work_dir, head, say)
        if training.complete:  # by the process that was waited for
            clock.done("training", None)
            continue
        steps = "" if training.iterations is None else f", {training.iterations} steps"
        begun = f" from step {training.done}" if training.done else ""
        say_begin(f"{head}: training {training.name}{steps}{begun}", clock, say)
        began = time.monotonic()
        call(execute, training.command(), log)
        if not training.complete:
            raise Failed(
                f"`ahpa train` left no checkpoint of step {training.iterations} (see {log})"
            )
        clock.done("training", None if begun else time.monotonic() - began)
    if measurement.complete:  # by another process since the plan was made
        clock.done(measurement.kind, None)
        return
    say_begin(f"{head}: {measurement.kind}", clock, say)
    began = time.monotonic()
    measurement.prepare()
    call(execute, measurement.command(), log)
    if not measurement.complete:
        raise Failed(f"`ahpa {measurement.command()[0]}` left no {measurement.path} (see {log})")
    clock.done(measurement.kind, time.monotonic() - began)


def say_begin(text: str, clock: Clock, say: Say) -> None:
    """Print what begins and the time left."""
    left = clock.text()
    say(f"{text}  ({left})" if left else text)


def call(execute: Execute, command: Sequence[str], log: Path) -> None:
    """Run a command. Raises Failed if it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(f"$ ahpa {shlex.join(command)}\n")
    code = execute(command, log)
    if code:
        what = f"`ahpa {command[0]}` ended with exit code {code}"
        raise Failed(f"{what}: {last_words(log)} (see {log})")


def last_words(log: Path) -> str:
    """Return the last error of the last command in a log, or its last line.

    A command's own message comes before the report that torchrun adds.
    """
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = lines[max(n for n, line in enumerate(lines) if line.startswith("$ ")) :]
    errors = [line for line in own if ERROR.match(line)]
    errors = errors or [line for line in own if "error" in line.lower()]
    return printable((errors or own)[-1].strip()[:300])


def wait_until_free(work_dir: Path, head: str, say: Say) -> None:
    """Return when no other process trains in a work dir."""
    waiting = False
    while True:
        try:
            lock.take(work_dir)
        except lock.WorkDirInUse:
            if not waiting:
                say(f"{head}: another process trains in {work_dir}; waiting for it")
            waiting = True
            time.sleep(WAIT)
        else:
            lock.release(work_dir)
            return


def samples_missing(plan: Plan) -> bool:
    """Whether samples are still to be drawn and evaluated."""
    return any(m.kind == "evaluation" for own in plan.missing().values() for m in own)


def check_prompts(plan: Plan) -> None:
    """Check that the prompts can be read, if they are needed. Raises UserError."""
    if plan.prompts is None or not samples_missing(plan):
        return
    if not plan.prompts.exists():
        raise UserError(
            f"prompts: {plan.prompts} is missing. Table {plan.table.name} samples the captions of "
            f"{plan.table.reference!r}, one a line. Fetch COCO's annotations_trainval2014.zip and "
            "make the file of its captions_val2014.json as docs/tables.md says; put it there, or "
            "give --prompts FILE."
        )
    read_prompts(plan.prompts)


def make_reference(plan: Plan, resolve: Resolve, say: Say) -> None:
    """Make the reference from training data if the scale says so.

    Raises:
        UserError: If a file that the scale names is missing.
    """
    if plan.reference is None or not samples_missing(plan) or plan.reference.exists():
        return
    if plan.drawn is None:
        raise UserError(
            f"reference: {plan.reference} is missing. Table {plan.table.name} needs the set "
            f"{plan.table.reference!r}: ADM's file, or one made by `ahpa reference`; put it there, "
            "or give --reference FILE."
        )
    say(f"reference: {plan.drawn} images of the training data: {plan.reference}")
    runs = [m.needs[0] for own in plan.measured.values() for m in own if m.kind == "evaluation"]
    make_training_reference(plan.reference, resolve(runs[0]), plan.drawn)


# ---- commands as processes ------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the environment of commands: they import the package that this process runs."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def process_command(command: Sequence[str], processes: int = 1) -> list[str]:
    """Return the process that runs `ahpa COMMAND...`.

    Args:
        command: Name and arguments.
        processes: With more than one, `train` and `evaluate` are started by torchrun.
    """
    own = ["-m", "ahpa.cli.main", *command]
    if processes > 1 and command[0] in ("train", "evaluate"):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        return [sys.executable, *torchrun, str(processes), *own, "--launcher", "pytorch"]
    return [sys.executable, *own]


def in_a_process(processes: int = 1) -> Execute:
    """Return what runs commands as processes, which end with this one's Ctrl-C or SIGTERM."""

    def execute(command: Sequence[str], log: Path) -> int:
        with open(log, "ab") as file:
            started = subprocess.Popen(
                process_command(command, processes),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(),
            )
            before = signal.signal(signal.SIGTERM, _terminated)
            try:
                return started.wait()
            except KeyboardInterrupt:  # the process got it as well, and saves a checkpoint
                started.wait()
                raise
            except SystemExit:
                started.terminate()
                started.wait()
                raise
            finally:
                signal.signal(signal.SIGTERM, before)

    return execute


def _terminated(number: int, frame: Any) -> NoReturn:
    sys.exit(TERMINATED)


# ---- slurm ----------------------------------------------------------------------------------


def slurm_script(plan: Plan, cells: Sequence[str], command: Sequence[str]) -> str:
    """Return an array job with one task for each cell.

    Args:
        plan: What is needed.
        cells: Names of the cells.
        command: The command that runs a cell, whose name is appended.
    """
    names = "\n".join(f"  {shlex.quote(name)}" for name in cells)
    logs = plan.folder.resolve() / "logs"
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name=ahpa-table-{plan.table.name}",
            f"#SBATCH --array=0-{len(cells) - 1}",
            f"#SBATCH --output={logs}/slurm-%A_%a.log",
            "#SBATCH --requeue",
            f"cells=(\n{names}\n)",
            f"cd {shlex.quote(os.getcwd())}",
            f"export PYTHONPATH={shlex.quote(environment()['PYTHONPATH'])}",
            f'exec {shlex.join(command)} --cell "${{cells[$SLURM_ARRAY_TASK_ID]}}"',
            "",
        ]
    )


def submit(script: Path, options: Sequence[str]) -> str:
    """Submit an array job; returns what sbatch said. Raises UserError if it failed."""
    try:
        done = subprocess.run(
            ["sbatch", *options, str(script)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            f"--launcher slurm: there is no sbatch here; submit {script} where slurm is."
        ) from error
    if done.returncode:
        raise UserError(f"--launcher slurm: sbatch failed: {printable(done.stderr.strip()[:300])}")
    return done.stdout.strip()
