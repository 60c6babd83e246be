"""The router's policy over time: how it weighs groups (beta) and the levels in them (alpha), as CSV and as a picture.

One row a time t in [0, 1] (t = 1 is noise): beta of each group, alpha of each level, their entropies in nats.
"""

import csv
import io
from pathlib import Path

import torch
from mmengine.hooks import Hook

from ..engine.checkpoint import write_file
from ..engine.hooks import check_interval, due
from ..registry import HOOKS
from ..registry.numerics import entropy

POINTS = 101


@torch.no_grad()
def policy_table(router, *, points: int = POINTS) -> dict[str, list[float]]:
    """Column name -> its values over t: 't', 'beta_<group>', 'alpha_<group>_<level>', 'entropy_*'."""
    device = next((p.device for p in router.parameters()), torch.device("cpu"))
    t = torch.linspace(0, 1, points, device=device)
    intra, inter = router.weights(t)
    table = {"t": t.tolist()}
    for column, group in enumerate(router.groups):
        table[f"beta_{group}"] = inter[:, column].tolist()
    for group, levels in router.groups.items():
        for column, level in enumerate(levels):
            table[f"alpha_{group}_{level}"] = intra[group][:, column].tolist()
    table["entropy_beta"] = entropy(inter).tolist()
    for group in router.groups:
        table[f"entropy_{group}"] = entropy(intra[group]).tolist()
    return table


def save_csv(table: dict[str, list[float]], path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([f"{value:.6g}" for value in row] for row in zip(*table.values(), strict=True))
    write_file(path, buffer.getvalue().encode())


def save_plot(table: dict[str, list[float]], groups: dict[str, tuple], path: Path, *, title: str) -> None:
    """Betas, the alphas of each group, and the entropies, over t."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * (len(groups) + 2), 3.6), layout="constrained")
    axes = figure.subplots(1, len(groups) + 2)
    panels = {"beta between groups": {group: f"beta_{group}" for group in groups}}
    for group, levels in groups.items():
        panels[f"alpha in {group}"] = {level: f"alpha_{group}_{level}" for level in levels}
    panels["entropy in nats"] = {"beta": "entropy_beta"} | {f"alpha {group}": f"entropy_{group}" for group in groups}
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, column in lines.items():
            axis.plot(table["t"], table[column], label=label)
        axis.set(title=name, xlabel="t (0 data, 1 noise)", xlim=(0, 1))
        axis.set_ylim(bottom=0, top=None if "entropy" in name else 1.02)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_file(path, buffer.getvalue())


@HOOKS.register_module()
class RoutingPolicy(Hook):
    """Writes each alignment's routing policy as PNG and CSV every `interval` iterations and at the end."""

    priority = "LOW"
    demo = dict(interval=500)

    def __init__(self, *, interval: int = 10_000):
        self.interval = check_interval("RoutingPolicy", interval)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if due(runner, self.interval) and runner.rank == 0:
            routed = {n: a for n, a in runner.plain_model.alignments.items() if hasattr(a, "router")}
            for name, alignment in routed.items():
                self.write(runner, name, alignment.router)

    def write(self, runner, name, router) -> None:
        path = Path(runner.work_dir) / "policy" / f"{name}_iter_{runner.iter:09d}.png"
        table = policy_table(router)
        save_csv(table, path.with_suffix(".csv"))
        save_plot(table, router.groups, path, title=f"{type(router).__name__}, iteration {runner.iter}")
        if runner.iter == runner.max_iters:
            runner.say(f"routing policy: {path} and .csv")
