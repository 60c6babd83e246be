"""The paper's tables and the scales at which they are run, both read from JSON files.

A table (configs/tables/) lists rows with their configs, lengths, sampling and printed figures. A
scale (configs/scales/) says how long and on what a row is trained, how it is evaluated, and which
of our figures stands beside which of the paper's. A new scale needs no code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..evaluation.protocol import canonical_json
from ..registry import ConfigError, UserError, nearest
from ..registry.files import read_json
from ..registry.locations import config_root, find_shipped
from ..registry.validation import integer, positive, positive_int

PREFIX = "table_"  # of the files with the paper's own tables
SAMPLED = ("FID", "sFID", "IS", "Precision", "Recall", "PickScore")
GSNR = ("gsnr_high_noise", "gsnr_low_noise", "gsnr_avg")
COSTS = ("GFLOPs", "EFP_M", "TS_iter_per_s", "latency_ms")
COMPARED = ("iteration", "sampler", "guidance", "latents")
IMAGENET = "imagenet-256"  # the reference of tables that name no other
TRAINING = ("demo", "iterations", "options", "data", "vae")
GSNR_OPTIONS = ("num", "batch", "bins")
COST_OPTIONS = ("steps", "batch")
MOST_BASES = 8  # scales that name each other


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: What the table calls it.
        config: The config's name; "" for a row that cannot be run.
        iterations: Optimiser steps; None for a cost.
        epochs: The same in epochs, as the paper prints it.
        sampler: Registered name of the sampler; None if nothing is sampled.
        steps: Steps of the sampler.
        guidance: Guidance options, `cfg_scale`, `cfg_interval` and `cfg_channels`.
        printed: {figure: what the paper prints}; a number, a text, or None for an empty cell.
        why_not: Why the row cannot be run; "" if it can.
    """

    name: str
    config: str
    iterations: int | None
    epochs: float | None
    sampler: str | None
    steps: int | None
    guidance: Mapping[str, Any]
    printed: Mapping[str, Any]
    why_not: str = ""

    def has(self, kinds: tuple[str, ...]) -> bool:
        """Whether the row prints a figure of these kinds, or leaves a cell for one."""
        return any(name in kinds for name in self.printed)


@dataclass(frozen=True)
class Table:
    """A table of the paper, or of another source.

    Attributes:
        name: Such as "D.17".
        title: Its title.
        source: Where the printed figures come from.
        notes: What is known about them.
        rows: All rows, those that cannot be run last.
        compares: Parts of the protocol in which the rows differ by design: "iteration", "sampler",
            "guidance", "latents".
        reference: Which reference set it needs, a key of a scale's `references`.
        gsnr_backbone: Config of the backbone on which every row's router and head are measured;
            "" if each row's G-SNR is that of its own backbone.
    """

    name: str
    title: str
    source: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    compares: tuple[str, ...]
    reference: str
    gsnr_backbone: str

    @property
    def runnable(self) -> tuple[Row, ...]:
        """The rows that can be run."""
        return tuple(row for row in self.rows if not row.why_not)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all printed figures, in order of appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.printed))

    def samplers(self) -> set[str]:
        """The samplers of the rows that can be run."""
        return {row.sampler for row in self.runnable if row.sampler is not None}


@dataclass(frozen=True)
class Scale:
    """How the rows of a table are trained, evaluated and put beside the paper's.

    Attributes:
        name: Its file's name.
        title: One line about it.
        notes: What a reader of its figures must know; printed under every table.
        base: Name of a scale that this one changes; None for none.
        training: `demo` (train --demo), `iterations` (None: as long as the row says), `options`
            ({key: value} of --cfg-options), `data` and `vae` (options of ahpa train).
        protocol: Options of the sampling protocol; they replace those of the row.
        common_sampler: Sampler of all rows of a table whose rows name several although it does not
            compare samplers.
        sampling_seed: Seed of the samples of training seed 0; that of seed K is K more, so that the
            spread over seeds holds the sampling's.
        metrics: {reference of a table, or "*": metrics that are computed}.
        figures: {figure of the paper: ours}; None if nothing stands beside it.
        references: {reference of a table, or "*": a file, or {"training_data": number}}.
        prompts: {reference of a table: text file with one prompt a line}, for models of text; of
            the others the checkpoint's own prompts are used.
        gsnr: Options `num`, `batch` and `bins` of ahpa analyze gsnr.
        cost: Options `steps` and `batch` of ahpa analyze cost; 0 steps measure no speed.
        throughput: `gmac_per_second` of the `machine` that hours are estimated for.
    """

    name: str
    title: str = ""
    notes: tuple[str, ...] = ()
    base: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    common_sampler: str | None = None
    sampling_seed: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str | None] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Any] = field(default_factory=dict)
    gsnr: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    throughput: Mapping[str, Any] = field(default_factory=dict)

    def iterations(self, row: Row) -> int | None:
        """Return the optimiser steps of a row."""
        own: int | None = self.training.get("iterations")
        return row.iterations if own is None or row.iterations is None else own

    def sampling(self, table: Table, row: Row) -> dict[str, Any]:
        """Return the options of the protocol under which a row is sampled."""
        sampler = row.sampler
        mixed = "sampler" not in table.compares and len(table.samplers()) > 1
        if mixed and self.common_sampler is not None:
            sampler = self.common_sampler
        own = {"sampler": sampler, "steps": row.steps, **row.guidance}
        metrics = self.metrics.get(table.reference, self.metrics.get("*", ()))
        return {**own, **self.protocol, "metrics": list(metrics)}

    def reference(self, table: Table) -> Any:
        """Return the reference of a table. Raises UserError if the scale has none."""
        found = self.references.get(table.reference, self.references.get("*"))
        if found is None:
            raise UserError(
                f"scale {self.name}: `references` has neither {table.reference!r} nor '*', so "
                f"Table {table.name} has nothing to compare with; give --reference FILE."
            )
        return found


def digest(value: Any) -> str:
    """Return 10 hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:10]


# ---- tables ---------------------------------------------------------------------------------


def table_paths() -> dict[str, Path]:
    """Return {name: file} of all tables: those of the paper in its order, then the others."""
    folder = config_root() / "tables"
    paper = sorted(folder.glob(f"{PREFIX}*.json"), key=_place)
    others = sorted(path for path in folder.glob("*.json") if path not in paper)
    return {str(read_json(path, "table")["table"]): path for path in [*paper, *others]}


def _place(path: Path) -> tuple[str, int]:
    """Return where a table stands in the paper: 1 to 7, then A.8 to I.21."""
    text = path.stem.removeprefix(PREFIX)
    return text.rstrip("0123456789"), int(text.lstrip("abcdefghi"))


def load_table(name: str) -> Table:
    """Read a table by its name, such as "D.17" or "d17".

    Raises:
        UserError: If there is none, with the nearest names.
    """
    paths = table_paths()
    wanted = {known.replace(".", "").lower(): known for known in paths}
    plain = name.replace(".", "").lower().removeprefix("table").strip(" _")
    if plain not in wanted:
        raise UserError(f"there is no table {name!r}{nearest(name, paths)}")
    return read_table(paths[wanted[plain]])


def read_table(path: Path) -> Table:
    """Read a table's file."""
    content = read_json(path, "table")
    rows = [_row(row) for row in [*content["rows"], *content.get("not_run", ())]]
    return Table(
        name=content["table"],
        title=content["title"],
        source=content.get("source", f"AHPA, Table {content['table']}"),
        notes=tuple(content.get("notes", ())),
        rows=tuple(rows),
        compares=tuple(content.get("compares", ())),
        reference=content.get("reference", IMAGENET),
        gsnr_backbone=Path(content.get("gsnr_backbone", "")).stem,
    )


def _row(content: Mapping[str, Any]) -> Row:
    """Return a row from its entry in a table's file."""
    why_not = content.get("why_not", "")
    if not content.get("reproducible", True):
        why_not = "no published autoencoder could be the one that it names"
    scale = content.get("cfg_scale")
    guidance: dict[str, Any] = {"cfg_scale": 1.0 if scale is None else scale}
    for key in ("cfg_interval", "cfg_channels"):
        if content.get(key) is not None:
            guidance[key] = content[key]
    return Row(
        name=content["row"],
        config=Path(content.get("config", "")).stem,
        iterations=content.get("iterations"),
        epochs=content.get("epochs"),
        sampler=content.get("sampler"),
        steps=content.get("steps"),
        guidance=guidance,
        printed=content["paper"],
        why_not=why_not,
    )


# ---- scales ---------------------------------------------------------------------------------


def load_scale(name: str) -> Scale:
    """Read a scale.

    Args:
        name: A shipped one such as "demo", or a .json file.

    Raises:
        UserError: If there is none.
        ConfigError: If it has a mistake.
    """
    content: dict[str, Any] = {}
    seen: list[str] = []
    wanted: str | None = name
    while wanted is not None:
        if wanted in seen or len(seen) == MOST_BASES:
            raise ConfigError(f"--scale: {' -> '.join([*seen, wanted])}: a scale is its own base.")
        seen.append(wanted)
        own = _read_scale(wanted, Path(seen[-2]).parent if len(seen) > 1 else Path())
        content = _laid_over(own, content)
        wanted = own.get("base")
    content["notes"] = tuple(content.get("notes", ()))
    scale = Scale(**{**content, "name": Path(name).stem})
    check_scale(scale)
    return scale


def _read_scale(name: str, folder: Path) -> dict[str, Any]:
    """Read one scale's file, without its base.

    Args:
        name: Its name or file.
        folder: Where a file is looked for that another scale names.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json":
        path = path if path.exists() else folder / path
    else:
        path = find_shipped("scales", name, "--scale")
    found = read_json(path, "--scale")
    if not isinstance(found, dict):
        raise ConfigError(f"--scale: {path} must hold an object of options.")
    valid = [option.name for option in fields(Scale) if option.name != "name"]
    for key in found:
        if key not in valid:
            raise ConfigError(f"--scale: {path.name} has no option {key!r}{nearest(key, valid)}")
    return found


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a base with changes; sections are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def check_scale(scale: Scale) -> None:
    """Check a scale's sections. Raises ConfigError for the first mistake."""
    where = f"--scale: {scale.name}"
    sections: dict[str, tuple[Any, tuple[str, ...]]] = {
        "training": (scale.training, TRAINING),
        "gsnr": (scale.gsnr, GSNR_OPTIONS),
        "cost": (scale.cost, COST_OPTIONS),
        "throughput": (scale.throughput, ("gmac_per_second", "machine")),
        "figures": (scale.figures, SAMPLED),
    }
    for name, (section, valid) in sections.items():
        if not isinstance(section, Mapping):
            raise ConfigError(f"{where}: {name} must be an object, got {section!r}.")
        for key in section:
            if key not in valid:
                raise ConfigError(f"{where}: {name} has no option {key!r}{nearest(key, valid)}")
    for name in ("protocol", "references", "prompts", "metrics"):
        if not isinstance(vars(scale)[name], Mapping):
            raise ConfigError(f"{where}: {name} must be an object, got {vars(scale)[name]!r}.")
    if scale.training.get("iterations") is not None:
        positive_int(f"{where}: training.iterations", scale.training["iterations"])
    for name, least in (("num", 2), ("batch", 1), ("bins", 1)):
        if name in scale.gsnr:
            integer(f"{where}: gsnr.{name}", scale.gsnr[name], least=least)
    for name, least in (("steps", 0), ("batch", 1)):
        if name in scale.cost:
            integer(f"{where}: cost.{name}", scale.cost[name], least=least)
    if "gmac_per_second" in scale.throughput:
        positive(f"{where}: throughput.gmac_per_second", scale.throughput["gmac_per_second"])
    integer(f"{where}: sampling_seed", scale.sampling_seed)
    for key, metrics in scale.metrics.items():
        if not isinstance(metrics, list) or not metrics:
            raise ConfigError(f"{where}: metrics.{key} must be a list of names, got {metrics!r}.")
    for key, file in scale.prompts.items():
        if not isinstance(file, str) or not file:
            raise ConfigError(f"{where}: prompts.{key} must be a text file, got {file!r}.")
    for key, reference in scale.references.items():
        drawn = isinstance(reference, Mapping) and set(reference) == {"training_data"}
        if drawn:
            integer(f"{where}: references.{key}.training_data", reference["training_data"], least=2)
        elif not isinstance(reference, str) or not reference:
            raise ConfigError(
                f"{where}: references.{key}: must be a file, or "
                f'{{"training_data": number of images}}; got {reference!r}.'
            )
