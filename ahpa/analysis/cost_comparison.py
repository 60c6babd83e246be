"""Costs of several configs or runs side by side: parameters, multiply-accumulates in both
countings, and the measured time and memory of a training step (AHPA, Tables 6 and I.21)."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..engine.assembly import build_model
from ..engine.dryrun import build_for_steps, synthetic_batch, train_step
from ..engine.run_log import peak_memory
from ..registry import UserError
from .cost import GIGA, Macs, added_macs, count_parameters, forward_macs, parameter_counts
from .results import COLOURS, Finding, new_figure, styled
from .runs import Source

WARM_UP = 2  # steps that are not timed
MILLION = 1e6


class Step(NamedTuple):
    """What a measured training step cost.

    Attributes:
        seconds: Median time of a step.
        peak_gib: Peak memory, of the GPU's allocator or else of the process.
        external: Parameters of the priors' own networks.
        reason: Why nothing was measured, or "".
    """

    seconds: float | None
    peak_gib: float | None
    external: int | None
    reason: str = ""


class Cost(NamedTuple):
    """Costs of one config or run.

    Attributes:
        name: Its name.
        parameters: {"backbone" or kind of head: number}.
        forward: MACs of the backbone's forward pass for one image.
        added: {part: MACs} that the alignments add in training.
        step: The measured step.
    """

    name: str
    parameters: dict[str, int]
    forward: Macs
    added: dict[str, Macs]
    step: Step

    @property
    def added_total(self) -> Macs:
        """Sum of what the alignments add."""
        totals = [macs.total for macs in self.added.values()]
        return Macs(sum(totals), sum(macs.attention for macs in self.added.values()))


def measure(source: Source, *, batch: int = 4, steps: int = 5) -> Cost:
    """Count the costs of a config or run, and measure training steps in a separate process.

    Args:
        source: The config or run.
        batch: Images of a step.
        steps: Steps that are timed; 0 measures none.
    """
    with torch.device("meta"):
        net = build_model(source.model)
    step = Step(None, None, None, "not asked for")
    if steps:
        step = measured_step(source.config, batch=batch, steps=steps)
    return Cost(
        source.name, parameter_counts(net), forward_macs(net.backbone), added_macs(net), step
    )


def measured_step(config: Mapping[str, Any], *, batch: int, steps: int) -> Step:
    """Measure training steps on synthetic images in a new process, whose peak memory is its own."""
    if "optim_wrapper" not in config:
        return Step(None, None, None, "it has no optimiser")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(theirs, dict(config), batch, steps))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = Step(None, None, None, "the process ended, perhaps for lack of memory")
    process.join()
    return found


def _measure_here(pipe: Any, config: dict[str, Any], batch: int, steps: int) -> None:
    """Measure in this process and send the result."""
    try:
        pipe.send(time_steps(config, batch=batch, steps=steps))
    except (UserError, torch.OutOfMemoryError) as error:
        pipe.send(Step(None, None, None, " ".join(str(error).split())[:300]))


def time_steps(config: Mapping[str, Any], *, batch: int, steps: int) -> Step:
    """Build everything that a config names, except its data, and time optimiser steps as at the
    start of a run, where every alignment has its weight.

    Raises:
        UserError: If weights are missing.
    """
    torch.manual_seed(0)
    net, optimiser = build_for_steps(config)
    if config.get("compile", False):
        for block in net.backbone.blocks:
            block.compile(dynamic=False)
    images = synthetic_batch(net, batch=batch)
    net.train()
    times = []
    for number in range(WARM_UP + steps):
        began = time.perf_counter()
        train_step(net, optimiser, images, seed=number)
        if optimiser.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    timed = sorted(times[WARM_UP:])
    external = sum(count_parameters(prior) for prior in net.parts.priors.values())
    return Step(timed[len(timed) // 2], peak_memory(), external)


# ---- what is written ------------------------------------------------------------------------


def rows_of(costs: Sequence[Cost], batch: int) -> list[dict[str, Any]]:
    """Return the figures, one row for each config or run; not measured ones are empty."""
    rows = []
    for cost in costs:
        backbone = cost.parameters["backbone"]
        seconds = cost.step.seconds
        rows.append(
            {
                "name": cost.name,
                "backbone_parameters": backbone,
                "head_parameters": sum(cost.parameters.values()) - backbone,
                "external_parameters": blank(cost.step.external),
                "forward_gmac": cost.forward.total / GIGA,
                "forward_gmac_without_attention": cost.forward.without_attention / GIGA,
                "added_gmac": cost.added_total.total / GIGA,
                "added_gmac_without_attention": cost.added_total.without_attention / GIGA,
                "step_seconds": blank(seconds),
                "images_per_second": blank(batch / seconds if seconds else None),
                "peak_gib": blank(cost.step.peak_gib),
                "batch": batch,
            }
        )
    return rows


def blank(value: float | None) -> float | str:
    """Return a value, or empty text where it was not measured."""
    return "" if value is None else value


def text_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the figures as lines of a table for a terminal."""
    heads = ("backbone M", "heads M", "external M", "GMAC", "no attn.", "+ GMAC", "s/step", "GiB")
    wide = max(len(row["name"]) for row in rows)
    lines = [" " * wide + "".join(f"{head:>12s}" for head in heads)]
    for row in rows:
        external = row["external_parameters"]
        values = (
            row["backbone_parameters"] / MILLION,
            row["head_parameters"] / MILLION,
            external if external == "" else external / MILLION,
            row["forward_gmac"],
            row["forward_gmac_without_attention"],
            row["added_gmac"],
            row["step_seconds"],
            row["peak_gib"],
        )
        shown = [f"{'-' if value == '' else f'{value:.4g}':>12s}" for value in values]
        lines.append(f"{row['name']:{wide}s}{''.join(shown)}")
    return lines


def finding(costs: Sequence[Cost], batch: int) -> Finding:
    """Return the picture and figures.

    Args:
        costs: The configs or runs in the order of the rows.
        batch: Images of a measured step.
    """
    rows = rows_of(costs, batch)
    names = [cost.name for cost in costs]
    with styled():
        figure = new_figure(12.5, max(2.4, 0.42 * len(costs) + 1.5), "Cost of training")
        axes = figure.subplots(1, 4, sharey=True)
        stacked(
            axes[0],
            names,
            {
                "backbone": [row["backbone_parameters"] / MILLION for row in rows],
                "heads": [row["head_parameters"] / MILLION for row in rows],
                "external, frozen": [number(row["external_parameters"]) / MILLION for row in rows],
            },
            "million parameters",
        )
        stacked(
            axes[1],
            names,
            {
                "backbone": [row["forward_gmac_without_attention"] for row in rows],
                "attention's products": [cost.forward.attention / GIGA for cost in costs],
                "heads and priors": [row["added_gmac"] for row in rows],
            },
            "GMAC an image, forward",
        )
        seconds = {"": [number(row["step_seconds"]) for row in rows]}
        stacked(axes[2], names, seconds, f"seconds a step of {batch} images")
        stacked(axes[3], names, {"": [number(row["peak_gib"]) for row in rows]}, "peak memory, GiB")
        axes[0].invert_yaxis()
    notes = text_table(rows)
    notes += [
        f"{cost.name}: not measured ({cost.step.reason})" for cost in costs if cost.step.reason
    ]
    details = {
        cost.name: {
            "parameters": cost.parameters,
            "added": {part: macs._asdict() for part, macs in cost.added.items()},
            "not_measured": cost.step.reason,
        }
        for cost in costs
    }
    return Finding("cost", rows, figure, details, notes)


def number(value: float | str) -> float:
    """Return a number to draw; 0 where nothing was measured."""
    return 0.0 if isinstance(value, str) else float(value)


def stacked(
    axis: Any, names: Sequence[str], parts: Mapping[str, Sequence[float]], title: str
) -> None:
    """Draw horizontal bars that are stacked from parts, with their sums written beside them."""
    left = [0.0] * len(names)
    for (label, values), colour in zip(parts.items(), COLOURS, strict=False):
        if any(values):
            axis.barh(names, values, left=left, color=colour, label=label, height=0.62)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for row, total in enumerate(left):
        text = f" {total:.3g}" if total else " not measured"
        axis.text(total, row, text, va="center", fontsize=8)
    axis.set_title(title)
    axis.set_xlim(0, 1.22 * max(max(left), 1e-9))
    axis.grid(False)
    axis.set_yticks(range(len(names)), names)
    if len(parts) > 1:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 1}
        axis.legend(**below)
