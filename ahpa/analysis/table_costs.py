"""What the rows of a table would cost: multiply-accumulates of training and sampling, and hours."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..engine.assembly import build_model
from .cost import GIGA, added_macs, forward_macs
from .table_cells import duration
from .table_runs import Plan, Training

BACKWARD = 2  # the backward pass costs two forward passes
UNITS = ((1e9, "EMAC"), (1e6, "PMAC"), (1e3, "TMAC"), (1.0, "GMAC"))


class Passes(NamedTuple):
    """GMACs for one image.

    Attributes:
        forward: Of the backbone's forward pass.
        training: Of a training step: forward and backward of backbone and heads, forward of the
            frozen networks. The autoencoder is not counted.
    """

    forward: float
    training: float


class RowCost(NamedTuple):
    """What a row costs with all its training seeds.

    Attributes:
        row: Name of the row.
        runs: Trainings that are missing.
        measurements: Measurements that are missing.
        gmac: GMACs of all of them.
        text: How the figure came about.
    """

    row: str
    runs: int
    measurements: int
    gmac: float
    text: str


def count_passes(config: Mapping[str, Any]) -> Passes:
    """Count the passes of a config's model, without computing them."""
    with torch.device("meta"):
        net = build_model(config["model"])
    forward = forward_macs(net.backbone).total / GIGA
    frozen = trained = 0.0
    for part, macs in added_macs(net).items():
        if part.startswith("prior "):
            frozen += macs.total / GIGA
        else:
            trained += macs.total / GIGA
    return Passes(forward, (1 + BACKWARD) * (forward + trained) + frozen)


def count_rows(plan: Plan, resolve: Callable[[Training], dict[str, Any]]) -> list[RowCost]:
    """Count what is missing of each row; what several rows share is counted at the first.

    Args:
        plan: What is needed.
        resolve: Returns the config of a training.
    """
    known: dict[str, tuple[Passes, int]] = {}
    seen: set[Any] = set()
    found = []
    for number, measurements in plan.measured.items():
        runs, count, gmac = 0, 0, 0.0
        parts = []
        for measurement in measurements:
            if measurement.complete or measurement.path in seen:
                continue
            seen.add(measurement.path)
            count += 1
            for training in measurement.needs:
                if training.config not in known:
                    config = resolve(training)
                    batch = config["train_dataloader"]["global_batch_size"]
                    known[training.config] = (count_passes(config), batch)
                passes, batch = known[training.config]
                if training.complete or training.work_dir in seen:
                    continue
                seen.add(training.work_dir)
                runs += 1
                left = (training.iterations or 0) - training.done
                gmac += passes.training * batch * left
                parts.append(f"{passes.training:.4g} GMAC x {batch} x {left:,} steps")
            if measurement.kind == "evaluation":
                protocol = measurement.options["protocol"]
                forward = known[measurement.needs[0].config][0].forward
                gmac += passes_a_step(protocol) * forward * protocol["steps"] * protocol["count"]
        name = plan.table.rows[number].name
        found.append(RowCost(name, runs, count, gmac, parts[0] if parts else ""))
    return found


def passes_a_step(protocol: Mapping[str, Any]) -> float:
    """Return the mean number of forward passes a sampling step: two where guidance applies."""
    if protocol.get("cfg_scale", 1) == 1:
        return 1.0
    low, high = protocol.get("cfg_interval") or (0.0, 1.0)
    return float(1 + high - low)


def cost_notes(plan: Plan, costs: Sequence[RowCost]) -> list[str]:
    """Return what is missing of a table and what it would cost, one line a row.

    Args:
        plan: What is needed.
        costs: The costs of the rows.
    """
    speed = plan.scale.throughput.get("gmac_per_second")
    found = []
    for cost in costs:
        if not cost.measurements:
            continue
        line = f"missing: {cost.row}: {plural(cost.runs, 'run')}"
        line += f", {plural(cost.measurements, 'measurement')}"
        if cost.gmac:
            line += f", {in_units(cost.gmac)}"
            line += f" (a run {cost.text})" if cost.text else ""
            line += f", {duration(cost.gmac / speed)}" if speed else ""
        found.append(line)
    if not found:
        return []
    total = sum(cost.gmac for cost in costs)
    if total and speed:
        machine = plan.scale.throughput.get("machine", "an unnamed machine")
        found.append(
            f"missing in all: {plural(sum(cost.runs for cost in costs), 'run')}, "
            f"{in_units(total)}, {duration(total / speed)} at {speed:g} GMAC/s ({machine}); the "
            "autoencoder is not counted"
        )
    found.append("--run trains and measures what is missing")
    return found


def plural(count: int, word: str) -> str:
    """Format a count: 1 -> "1 run", 3 -> "3 runs"."""
    return f"{count} {word}" + ("" if count == 1 else "s")


def in_units(gmac: float) -> str:
    """Format GMACs in a unit of readable size."""
    for size, unit in UNITS:
        if gmac >= size:
            return f"{gmac / size:.3g} {unit}"
    return f"{gmac:.3g} GMAC"
