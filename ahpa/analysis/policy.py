"""The router's policy over time: how it weighs groups (beta) and the levels in them (alpha), as CSV and as a picture.

One row a time t in [0, 1] (t = 1 is noise): beta of each group, alpha of each level, their entropies in nats; where
groups are learned, also how far each level belongs to each, which is the same at every t.
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
LINES = 8  # levels of a group that are still told apart as lines; more are drawn as a map
COLUMNS = 4


@torch.no_grad()
def policy_table(router, *, points: int = POINTS) -> dict[str, list[float]]:
    """Column name -> its values over t: 't', 'beta_<group>', 'alpha_<group>_<level>', 'entropy_*', and of learned groups
    'membership_<group>_<level>'."""
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
    for group, shares in router.membership().items():
        for level, share in zip(router.groups[group], shares.tolist(), strict=True):
            table[f"membership_{group}_{level}"] = [share] * points
    return table


def save_csv(table: dict[str, list[float]], path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([f"{value:.6g}" for value in row] for row in zip(*table.values(), strict=True))
    write_file(path, buffer.getvalue().encode())


def save_plot(table: dict[str, list[float]], groups: dict[str, tuple], path: Path, *, title: str) -> None:
    """Betas, the alphas of each group, and the entropies, over t; the membership of each level where it is learned."""
    from matplotlib.figure import Figure

    learned = any(column.startswith("membership_") for column in table)
    count = len(groups) + 2 + learned
    across, down = min(count, COLUMNS), -(-count // COLUMNS)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    axes = iter(figure.subplots(down, across, squeeze=False).flat)
    draw_lines(next(axes), table, "beta between groups", {group: f"beta_{group}" for group in groups})
    for group, levels in groups.items():
        draw = draw_lines if len(levels) <= LINES else draw_map
        draw(next(axes), table, f"alpha in {group}", {level: f"alpha_{group}_{level}" for level in levels})
    if learned:
        draw_membership(next(axes), table, groups)
    lines = {"beta": "entropy_beta"} | {f"alpha {group}": f"entropy_{group}" for group in groups}
    draw_lines(next(axes), table, "entropy in nats", lines, top=None)
    for empty in axes:
        empty.set_axis_off()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_file(path, buffer.getvalue())


def draw_lines(axis, table, title: str, lines: dict[str, str], *, top: float | None = 1.02) -> None:
    for label, column in lines.items():
        axis.plot(table["t"], table[column], label=label)
    axis.set(title=title, xlabel="t (0 data, 1 noise)", xlim=(0, 1))
    axis.set_ylim(bottom=0, top=top)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_map(axis, table, title: str, lines: dict[str, str]) -> None:
    """A row a level, the deepest at the top, over t; the scale ends at the largest weight."""
    values = [table[column] for column in lines.values()]
    extent = (0, 1, -0.5, len(lines) - 0.5)
    image = axis.imshow(values, aspect="auto", origin="lower", interpolation="nearest", extent=extent, vmin=0)
    axis.set(title=title, xlabel="t (0 data, 1 noise)")
    axis.set_yticks(range(len(lines)), lines, fontsize=7)
    axis.figure.colorbar(image, ax=axis)


def draw_membership(axis, table, groups: dict[str, tuple]) -> None:
    """A row a level, a column a group: the shares as numbers."""
    levels = next(iter(groups.values()))
    values = [[table[f"membership_{group}_{level}"][0] for group in groups] for level in levels]
    axis.imshow(values, aspect="auto", origin="lower", vmin=0, vmax=1)
    for row, shares in enumerate(values):
        for column, share in enumerate(shares):
            axis.text(
                column, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color="w" if share < 0.6 else "k"
            )
    axis.set(title="membership of each level")
    axis.set_xticks(range(len(groups)), groups, fontsize=8)
    axis.set_yticks(range(len(levels)), levels, fontsize=7)


@HOOKS.register_module()
class RoutingPolicy(Hook):
    """Writes the routing policy of each alignment of several levels as PNG and CSV every `interval` iterations and at the
    end."""

    priority = "LOW"
    demo = dict(interval=500)

    def __init__(self, *, interval: int = 10_000):
        self.interval = check_interval("RoutingPolicy", interval)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if due(runner, self.interval) and runner.rank == 0:
            routers = {name: getattr(own, "router", None) for name, own in runner.plain_model.alignments.items()}
            for name, router in routers.items():
                if router is not None and sum(map(len, router.groups.values())) > 1:  # else there is nothing to weigh
                    self.write(runner, name, router)

    def write(self, runner, name, router) -> None:
        path = Path(runner.work_dir) / "policy" / f"{name}_iter_{runner.iter:09d}.png"
        table = policy_table(router)
        save_csv(table, path.with_suffix(".csv"))
        save_plot(table, router.groups, path, title=f"{type(router).__name__}, iteration {runner.iter}")
        if runner.iter == runner.max_iters:
            runner.say(f"routing policy: {path} and .csv")
