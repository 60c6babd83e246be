"""What a table at a scale needs: trainings and measurements, their commands, and what is there.

Nothing but the files says what is done: a training is complete if its last checkpoint is there, a
measurement if its result is. Files appear complete or not at all, so that a table can be killed at
any point and continued.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import checkpoint
from ..engine.plain import to_plain
from ..evaluation.images import write_npz
from ..evaluation.protocol import EvaluationResult, load_result
from ..registry import UserError
from ..registry.files import read_json, write_file
from .evaluate import TrainingReference
from .tables import COSTS, GSNR, SAMPLED, Row, Scale, Table, digest

RECORD = "table.json"  # in a work dir: how the table's scale trained it
RESULTS = "tables"  # in a work dir: results by what was asked for; `evaluations` has them as well
GSNR_NAMES = {"gsnr_high_noise": "high_noise", "gsnr_low_noise": "low_noise", "gsnr_avg": "mean"}
USUAL_LENGTHS = (400_000, 150_000)  # of the recipes: work dirs of other lengths name theirs
MILLION = 1e6
REFERENCE_BATCH = 64  # images in memory while a reference is written


@dataclass(frozen=True)
class Training:
    """A run of `ahpa train`: a config, a length and a training seed.

    Attributes:
        config: The config's name.
        iterations: Optimiser steps; None as long as the config says.
        seed: Training seed.
        work_dir: Its folder, shared by all rows and tables that need it.
        options: How the scale trains: see `Scale.training`.
    """

    config: str
    iterations: int | None
    seed: int
    work_dir: Path
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The work dir's name."""
        return self.work_dir.name

    @property
    def done(self) -> int:
        """Iteration of the newest checkpoint; 0 without one."""
        found = checkpoint.list_checkpoints(self.work_dir / "checkpoints")
        return max((iteration for iteration, _ in found), default=0)

    @property
    def complete(self) -> bool:
        """Whether the last checkpoint is there."""
        return self.iterations is not None and self.done >= self.iterations

    def arguments(self) -> list[str]:
        """Return the arguments of `ahpa train`."""
        found = [self.config, "--seed", str(self.seed), "--work-dir", str(self.work_dir)]
        if self.iterations is not None:
            found += ["--max-iters", str(self.iterations)]
        if self.options.get("demo"):
            found.append("--demo")
        for name in ("data", "vae"):
            if self.options.get(name):
                found += [f"--{name}", str(self.options[name])]
        options = self.options.get("options") or {}
        if options:
            found += ["--cfg-options", *(f"{key}={value!r}" for key, value in options.items())]
        return found

    def command(self) -> list[str]:
        """Return the command, which begins or continues the run."""
        return ["train", *self.arguments(), "--resume"]

    def record(self) -> dict[str, Any]:
        """Return what tells this run from one of another scale."""
        return {
            "config": self.config,
            "iterations": self.iterations,
            "seed": self.seed,
            "training": dict(self.options),
        }

    def check(self) -> None:
        """Check that the work dir is empty or was trained as this run is.

        Raises:
            UserError: If it was trained otherwise.
        """
        path = self.work_dir / RECORD
        if path.exists():
            before = read_json(path, "work dir")
            if before != json.loads(json.dumps(self.record())):
                raise UserError(
                    f"{self.work_dir} was trained otherwise ({path.name} says how): the scale, "
                    "--data or --vae has changed. Choose another --work-dir, or move this folder "
                    "aside."
                )
        elif self.done:
            raise UserError(
                f"{self.work_dir} holds a run that no table has started; choose another --work-dir."
            )

    def claim(self) -> None:
        """Note in the work dir how it is trained. Raises UserError if it was trained otherwise."""
        self.check()
        text = json.dumps(self.record(), indent=1)
        write_file(self.work_dir / RECORD, text.encode() + b"\n")


@dataclass(frozen=True)
class Measurement:
    """Something that is measured on trained runs, or on a config.

    Attributes:
        kind: "evaluation", "gsnr" or "cost".
        name: The config or work dir, for the reader.
        needs: Trainings that must be complete; the measured one first.
        options: Options of the measurement, plain values.
        path: Its result.
    """

    kind: str
    name: str
    needs: tuple[Training, ...]
    options: Mapping[str, Any]
    path: Path

    @property
    def complete(self) -> bool:
        """Whether the result is there."""
        return self.path.is_file()

    def command(self) -> list[str]:
        """Return the command that writes the result."""
        if self.kind == "cost":
            own = [f"--{key}={value}" for key, value in self.options.items()]
            return ["analyze", "cost", self.name, "--out", str(self.path.parent), *own]
        run = str(self.needs[0].work_dir)
        if self.kind == "gsnr":
            own = [f"--{key}={value}" for key, value in self.options.items()]
            if len(self.needs) > 1:
                own += ["--heads", str(self.needs[1].work_dir)]
            data = self.needs[0].options.get("data")
            own += ["--data", str(data)] if data else []
            return ["analyze", "gsnr", run, "--out", str(self.path.parent), *own]
        prompts = self.options.get("prompts")
        return [
            "evaluate",
            run,
            "--protocol",
            str(self.protocol_path),
            "--reference",
            str(self.options["reference"]),
            "--seed",
            str(self.options["seed"]),
            "--out",
            str(self.path),
            *(["--prompts", str(prompts)] if prompts else []),
        ]

    @property
    def protocol_path(self) -> Path:
        """The file with the sampling protocol of an evaluation."""
        protocol = self.options["protocol"]
        return self.path.parents[2] / "protocols" / f"{digest(protocol)}.json"

    def prepare(self) -> None:
        """Write the file that the command reads, if there is one."""
        if self.kind == "evaluation" and not self.protocol_path.exists():
            text = json.dumps(self.options["protocol"], indent=1)
            write_file(self.protocol_path, text.encode() + b"\n")

    def read(self) -> EvaluationResult:
        """Read the result with its protocol. Raises UserError if the file is something else."""
        if self.kind == "evaluation":
            return load_result(self.path)
        found = read_json(self.path, f"result of {self.kind}")
        try:
            figures, protocol = self.read_analysis(found)
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.path} is damaged, or no result of `ahpa analyze {self.kind}`; remove it "
                "and give --run again."
            ) from error
        seed = self.needs[0].seed if self.needs else 0
        return EvaluationResult(figures, protocol, {"run": self.name, "training_seed": seed})

    def read_analysis(self, found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the figures and the protocol of a result of `ahpa analyze`."""
        read = {"gsnr": read_gsnr, "cost": read_cost}[self.kind]
        figures = {key: value for key, value in read(found).items() if value is not None}
        protocol = {"kind": self.kind, **self.options}
        if self.kind == "gsnr":
            protocol |= {key: found["record"]["runs"][0][key] for key in ("weights", "iteration")}
            protocol["params"] = found["summary"]["params"]
        return figures, protocol


def read_gsnr(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the G-SNR of a run's first alignment by phase, times the number of images B.

    Gradients without a common direction give 1 / B, so times B they give about 1.
    """
    own = found["summary"]["curves"][0]["gsnr_times_b"]
    return {name: own.get(key) for name, key in GSNR_NAMES.items()}


def read_cost(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the costs of a config as the paper counts them.

    GFLOPs are multiply-accumulates of a training step's forward pass without attention's products;
    EFP_M are the millions of parameters of heads and routers.
    """
    row = found["rows"][0]
    keys = ("forward_gmac_without_attention", "added_gmac_without_attention")
    seconds = row["step_seconds"]
    return {
        "GFLOPs": sum(row[key] for key in keys),
        "EFP_M": row["head_parameters"] / MILLION,
        "TS_iter_per_s": 1 / seconds if seconds else None,
    }


# ---- the plan -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """All that a table needs at a scale.

    Attributes:
        table: The table.
        scale: The scale.
        folder: Folder of the scale's work dirs.
        seeds: Number of training seeds.
        measured: {index of the row: its measurements}, for the rows that can be run.
        reference: File of the reference set; None if nothing is sampled.
        drawn: How many images of the training data make the reference; None for a file that must
            be there.
        prompts: File of the prompts that are sampled; None for those of the checkpoint, or if
            nothing is sampled.
    """

    table: Table
    scale: Scale
    folder: Path
    seeds: int
    measured: Mapping[int, tuple[Measurement, ...]]
    reference: Path | None
    drawn: int | None = None
    prompts: Path | None = None

    def cells(self) -> dict[str, list[Measurement]]:
        """Return {name of a cell: its measurements}, all of one seed before those of the next.

        A cell is one config with one training seed; its name is that of the work dir.
        """
        found: dict[str, list[Measurement]] = {}
        single = {m.path: m for own in self.measured.values() for m in own}
        for measurement in sorted(single.values(), key=seed_of):
            found.setdefault(measurement.name, []).append(measurement)
        return found

    def trainings(self) -> list[Training]:
        """Return all trainings, each once."""
        found = {t.work_dir: t for own in self.measured.values() for m in own for t in m.needs}
        return list(found.values())

    def missing(self) -> dict[str, list[Measurement]]:
        """Return the cells with the measurements that are not there."""
        cells = {name: [m for m in own if not m.complete] for name, own in self.cells().items()}
        return {name: own for name, own in cells.items() if own}


def seed_of(measurement: Measurement) -> int:
    """Return the training seed of a measurement; 0 without a training."""
    return measurement.needs[0].seed if measurement.needs else 0


def make_plan(
    table: Table,
    scale: Scale,
    folder: Path,
    *,
    seeds: int,
    data: str | None = None,
    vae: str | None = None,
    reference: str | None = None,
    prompts: str | None = None,
) -> Plan:
    """Return what a table needs at a scale. Nothing is read but the checkpoints' names.

    Args:
        table: The table.
        scale: The scale.
        folder: Folder of all scales' work dirs.
        seeds: Training seeds 0 .. seeds - 1 of every row.
        data: Training data instead of the scale's.
        vae: Autoencoder instead of the scale's.
        reference: Reference set instead of the scale's.
        prompts: File of prompts instead of the scale's.

    Raises:
        UserError: If the scale has no reference for the table, or a work dir belongs to another
            scale.
    """
    own = folder / scale.name
    options = {
        **scale.training,
        **({"data": data} if data else {}),
        **({"vae": vae} if vae else {}),
    }
    options = {key: options[key] for key in sorted(options) if key != "iterations"}
    sampled = any(row.has(SAMPLED) for row in table.runnable)
    source = (reference or scale.reference(table)) if sampled else None
    place = reference_place(table, source, own, options)
    drawn = None if not isinstance(source, Mapping) else source["training_data"]
    asked = (prompts or scale.prompts.get(table.reference)) if sampled else None
    prompted = None if asked is None else Path(asked).expanduser()

    def training(config: str, row: Row, seed: int) -> Training:
        length = scale.iterations(row)
        usual = scale.training.get("iterations") is not None or length in USUAL_LENGTHS
        name = config if usual or length is None else f"{config}_iters-{length}"
        return Training(config, length, seed, own / f"{name}_seed-{seed}", options)

    measured = {}
    for number, row in enumerate(table.rows):
        if row.why_not:
            continue
        found = []
        if row.has(COSTS):
            path = own / "costs" / row.config / digest(dict(scale.cost)) / "cost.json"
            found.append(Measurement("cost", row.config, (), dict(scale.cost), path))
        for seed in range(seeds):
            if row.has(SAMPLED):
                run = training(row.config, row, seed)
                protocol = scale.sampling(table, row)
                request = {
                    "protocol": protocol,
                    "reference": str(place),
                    "seed": scale.sampling_seed + seed,
                    **({"prompts": str(prompted)} if prompted else {}),
                }
                path = run.work_dir / RESULTS / f"{digest(request)}.json"
                found.append(Measurement("evaluation", run.name, (run,), request, path))
            if row.has(GSNR):
                runs = [training(row.config, row, seed)]
                if table.gsnr_backbone:
                    runs.insert(0, training(table.gsnr_backbone, row, seed))
                folder_name = f"table-{digest([dict(scale.gsnr), [r.name for r in runs]])}"
                path = runs[-1].work_dir / "analysis" / folder_name / "gsnr.json"
                found.append(Measurement("gsnr", runs[-1].name, tuple(runs), scale.gsnr, path))
        measured[number] = tuple(found)
    plan = Plan(table, scale, own, seeds, measured, place, drawn, prompted)
    for run in plan.trainings():
        run.check()
    return plan


VARYING = ("work_dir", "method", "randomness")  # in configs that are otherwise the same


def equal_rows(plan: Plan, resolve: Callable[[Training], Mapping[str, Any]]) -> list[list[str]]:
    """Return groups of rows that the scale makes the same: one config, measured alike.

    Small models have fewer blocks, and one size stands for all, so different rows may coincide.

    Args:
        plan: What is needed.
        resolve: Returns the config of a training.
    """
    groups: dict[str, list[str]] = {}
    for number, measurements in plan.measured.items():
        kinds = []
        for measurement in measurements:
            if seed_of(measurement) or not measurement.needs:
                continue
            configs = [
                {key: value for key, value in resolve(run).items() if key not in VARYING}
                for run in measurement.needs
            ]
            kinds.append([measurement.kind, measurement.options, configs])
        if kinds:
            groups.setdefault(digest(to_plain(kinds)), []).append(plan.table.rows[number].name)
    return [names for names in groups.values() if len(names) > 1]


# ---- the reference --------------------------------------------------------------------------


def reference_place(
    table: Table, found: Any, folder: Path, options: Mapping[str, Any]
) -> Path | None:
    """Return where a table's reference is, or will be made.

    Args:
        table: The table.
        found: A file, {"training_data": number of images}, or None if nothing is sampled.
        folder: Folder of the scale's work dirs.
        options: How the scale trains.
    """
    if not isinstance(found, Mapping):
        return None if found is None else Path(found).expanduser()
    count = found["training_data"]
    kind = digest([options.get("data"), table.reference, count])
    return folder / "references" / f"training-data-{count}-{kind}.npz"


def make_training_reference(path: Path, config: Mapping[str, Any], count: int) -> None:
    """Write images of a run's training data, spread evenly over it and without flips, as .npz.

    Args:
        path: The file; it is complete or absent.
        config: The run's config.
        count: Number of images; all of a smaller data set.

    Raises:
        UserError: If the data set is not there, an image cannot be read, or the file cannot be
            written.
    """
    images = TrainingReference(config, most=count).images
    pictures = (batch.images for batch in images.batches(REFERENCE_BATCH))
    write_npz(path, pictures, count=len(images), size=images.size)
