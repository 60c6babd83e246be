"""A router's policy over time: how it weighs groups (beta) and the levels in them (alpha), as CSV
and as a picture. t = 1 is noise."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.hooks import Hook

from ..registry import HOOKS, UserError
from ..registry.contracts import Router
from ..registry.files import write_file
from ..registry.numerics import entropy
from ..registry.validation import positive_int

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 101  # times in a table
MOST_LINES = 8  # a group of more levels is drawn as a map, since so many lines cannot be told apart
MOST_COLUMNS = 4  # plots side by side

Table = dict[str, list[float]]
Groups = Mapping[str, tuple[str, ...]]


# ---- the table ------------------------------------------------------------------------------


@torch.no_grad()
def policy_table(
    router: Router,
    *,
    points: int = POINTS,
) -> Table:
    """Tabulate the weights of a router over t in [0, 1].

    Args:
        router: Any router; one that also looks at the content must accept None for it.
        points: Number of equidistant times.

    Returns:
        Column -> its values: "t", "beta_<group>", "alpha_<group>_<level>", "entropy_beta" and
        "entropy_<group>" in nats and, for learned groups, "membership_<group>_<level>", which is
        the same at every t.
    """
    device = next((p.device for p in router.parameters()), torch.device("cpu"))
    t = torch.linspace(0, 1, points, device=device)
    intra, inter = router.weights(t, None)
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


def save_csv(table: Table, path: Path) -> None:
    """Write a table as CSV, one row for each time. Raises UserError if it cannot be written."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([f"{value:.6g}" for value in row])
    write_file(path, buffer.getvalue().encode())


# ---- the picture ----------------------------------------------------------------------------


def save_plot(
    table: Table,
    groups: Groups,
    path: Path,
    *,
    title: str,
) -> None:
    """Draw betas, the alphas of each group, their entropies and, if learned, the membership.

    Args:
        table: What `policy_table` returned.
        groups: The router's groups.
        path: The PNG to write.
        title: Title of the picture.

    Raises:
        UserError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    learned = any(column.startswith("membership_") for column in table)
    count = len(groups) + 2 + learned
    columns = min(count, MOST_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(4.2 * columns, 3.6 * rows),
        layout="constrained",
    )
    axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
    betas = {group: f"beta_{group}" for group in groups}
    draw_lines(next(axes), table, "beta between groups", betas)
    for group, levels in groups.items():
        draw = draw_lines if len(levels) <= MOST_LINES else draw_map
        alphas = {level: f"alpha_{group}_{level}" for level in levels}
        draw(next(axes), table, f"alpha in {group}", alphas)
    if learned:
        draw_membership(next(axes), table, groups)
    entropies = {"beta": "entropy_beta"}
    entropies |= {f"alpha {group}": f"entropy_{group}" for group in groups}
    draw_lines(next(axes), table, "entropy in nats", entropies, top=None)
    for empty in axes:
        empty.set_axis_off()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_file(path, buffer.getvalue())


def draw_lines(
    axis: "Axes",
    table: Table,
    title: str,
    lines: Mapping[str, str],
    *,
    top: float | None = 1.02,
) -> None:
    """Draw columns of a table over t.

    Args:
        axis: Where to draw.
        table: What `policy_table` returned.
        title: Title of the plot.
        lines: Label of each line -> its column.
        top: Upper limit of the axis; None to fit the lines.
    """
    for label, column in lines.items():
        axis.plot(table["t"], table[column], label=label)
    axis.set(title=title, xlabel="t (0 data, 1 noise)", xlim=(0, 1))
    axis.set_ylim(bottom=0, top=top)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_map(
    axis: "Axes",
    table: Table,
    title: str,
    lines: Mapping[str, str],
) -> None:
    """Draw columns as rows of colours over t, the deepest level at the top; see `draw_lines`."""
    values = [table[column] for column in lines.values()]
    image = axis.imshow(
        values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(0, 1, -0.5, len(lines) - 0.5),
        vmin=0,
    )
    axis.set(title=title, xlabel="t (0 data, 1 noise)")
    axis.set_yticks(range(len(lines)), list(lines), fontsize=7)
    axis.figure.colorbar(image, ax=axis)


def draw_membership(
    axis: "Axes",
    table: Table,
    groups: Groups,
) -> None:
    """Draw how far each level (row) belongs to each group (column), with numbers."""
    levels = next(iter(groups.values()))
    values = []
    for level in levels:
        values.append([table[f"membership_{group}_{level}"][0] for group in groups])
    axis.imshow(values, aspect="auto", origin="lower", vmin=0, vmax=1)
    for row, shares in enumerate(values):
        for column, share in enumerate(shares):
            axis.text(
                column,
                row,
                f"{share:.2f}",
                ha="center",
                va="center",
                fontsize=6,
                color="w" if share < 0.6 else "k",
            )
    axis.set(title="membership of each level")
    axis.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axis.set_yticks(range(len(levels)), levels, fontsize=7)


# ---- the hook -------------------------------------------------------------------------------


def routers_of(alignments: Mapping[str, torch.nn.Module]) -> dict[str, Router]:
    """Find the routers with something to weigh, i.e. of at least two levels.

    Args:
        alignments: {name: alignment}.

    Returns:
        {name: router}; the name is the alignment's, followed by the router's place in it if the
        alignment has several.
    """
    found = {}
    for name, alignment in alignments.items():
        routers = {
            place: part for place, part in alignment.named_modules() if isinstance(part, Router)
        }
        for place, router in routers.items():
            label = name if len(routers) == 1 else f"{name}_{place}"
            if sum(len(levels) for levels in router.groups.values()) > 1:
                found[label] = router
    return found


@HOOKS.register_module()
class RoutingPolicy(Hook):
    """Writes the policy of every router to `<work_dir>/policy` as CSV and PNG.

    A file that cannot be written is a warning: it does not stop the run.

    Args:
        interval: Iterations between two snapshots; there is one at the end too.

    Raises:
        ConfigError: If `interval` is not a positive integer.
    """

    priority = "LOW"

    def __init__(self, *, interval: int = 10_000) -> None:
        self.interval = positive_int("interval", interval)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Write snapshots if they are due. `runner.iter` is the number before the increment."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not due or runner.rank != 0:
            return
        for name, router in routers_of(runner.net.alignments).items():
            self.write(runner, name, router)

    def write(self, runner: Any, name: str, router: Router) -> None:
        """Write the CSV and PNG of one router."""
        iteration = runner.iter + 1
        path = Path(runner.work_dir) / "policy" / f"{name}_iter_{iteration:09d}.png"
        title = f"{type(router).__name__}, iteration {iteration}"
        table = policy_table(router)
        try:
            save_csv(table, path.with_suffix(".csv"))
            save_plot(table, router.groups, path, title=title)
        except (OSError, UserError) as error:
            runner.logger.warning("the routing policy was not written: %s", error)
            return
        if self.is_last_train_iter(runner):
            runner.logger.info("routing policy: %s and .csv", path)
