"""A router's policy over t, over training and over content, and whether it has collapsed (AHPA,
Figure 5)."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..alignment.routed import RoutedAlignment
from ..engine import checkpoint
from ..registry import UserError
from ..registry.contracts import Router
from .policy import POINTS, Table, policy_table, routers_of
from .results import STYLES, TIME, Finding, heat_map, look, new_figure, styled
from .runs import ALIGNMENTS, Run, batches, generator, observe

COLLAPSED = 0.1  # evenness H / log n below which a row of weights counts as collapsed
CONTENT_TIMES = 11  # times at which content is looked at
MOST_LINES = 8  # alphas of a group drawn as lines
MOST_COLUMNS = 8  # iterations written as labels


class Policy(NamedTuple):
    """The policy of one router.

    Attributes:
        router: The router after the run's last step.
        history: {iteration: table over t}, the last one included.
        content: {column: standard deviation over images at each of `CONTENT_TIMES` times}; empty if
            the router does not look at the content.
    """

    router: Router
    history: dict[int, Table]
    content: dict[str, list[float]]

    @property
    def table(self) -> Table:
        """The table after the last step."""
        return self.history[max(self.history)]


def measure(
    run: Run, *, images: int = 64, batch: int = 32, points: int = POINTS, seed: int = 0
) -> dict[str, Policy]:
    """Tabulate the routers of a run.

    The history comes from the run's checkpoints, and from the tables that the hook RoutingPolicy
    wrote for iterations whose checkpoints are gone.

    Args:
        run: The run.
        images: Images whose content a content-adaptive router looks at.
        batch: Images at once.
        points: Equidistant times of a table.
        seed: Which images, and the noise.

    Returns:
        {router: policy}.

    Raises:
        UserError: If the run has no router with something to weigh.
    """
    routers = routers_of(dict(run.net.alignments.items()))
    if not routers:
        raise UserError(f"{run.name} has no router with more than one level to weigh.")
    spread = content_spread(run, images=images, batch=batch, seed=seed)
    last = run.source.iteration
    histories = {
        name: {**written_tables(run, name, router), last: policy_table(router, points=points)}
        for name, router in routers.items()
    }
    for iteration, state in earlier_states(run):
        run.net.alignments.load_state_dict(state)
        for name, router in routers.items():
            histories[name][iteration] = policy_table(router, points=points)
    if run.source.state:
        run.net.alignments.load_state_dict(alignment_state(run.source.state))
    return {
        name: Policy(router, dict(sorted(histories[name].items())), spread.get(name, {}))
        for name, router in routers.items()
    }


def alignment_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a network's state dict that belongs to its alignments."""
    own = state.items()
    return {key.removeprefix(ALIGNMENTS): x for key, x in own if key.startswith(ALIGNMENTS)}


def earlier_states(run: Run) -> list[tuple[int, dict[str, Tensor]]]:
    """Return (iteration, alignments' state) of the run's other checkpoints up to its own."""
    path = run.source.path
    if path is None or path.parent.name != "checkpoints":
        return []
    found = []
    for iteration, file in checkpoint.list_checkpoints(path.parent):
        if iteration < run.source.iteration:
            found.append((iteration, alignment_state(checkpoint.load(file)["model"])))
    return found


def written_tables(run: Run, name: str, router: Router) -> dict[int, Table]:
    """Read the tables that the hook RoutingPolicy wrote up to the run's iteration.

    Raises:
        UserError: If a table is not one of this router's.
    """
    path = run.source.path
    if path is None or path.parent.name != "checkpoints":
        return {}
    expected = set(policy_table(router, points=2))
    found: dict[int, Table] = {}
    for file in sorted((path.parent.parent / "policy").glob(f"{name}_iter_*.csv")):
        match = re.fullmatch(re.escape(name) + r"_iter_(\d+)", file.stem)
        if match is None or int(match[1]) > run.source.iteration:
            continue
        with open(file, newline="") as lines:
            rows = list(csv.DictReader(lines))
        if not rows or set(rows[0]) != expected:
            raise UserError(f"{file} is not a table of the router {name!r}; move it aside.")
        found[int(match[1])] = {key: [float(row[key]) for row in rows] for key in rows[0]}
    return found


@torch.no_grad()
def content_spread(
    run: Run, *, images: int, batch: int, seed: int
) -> dict[str, dict[str, list[float]]]:
    """Return how much a router's weights differ between images at the same t.

    Returns:
        {router: {column: standard deviation at each time}} of the routers that look at the content.
    """
    net = run.net
    routed = {n: a for n, a in net.alignments.items() if isinstance(a, RoutedAlignment)}
    seen: dict[str, list[dict[str, list[Tensor]]]] = {}
    first = [False] * len(routed)
    times = torch.linspace(0, 1, CONTENT_TIMES).tolist()
    for part, item in enumerate(batches(run.dataset, images, batch=batch, seed=seed)):
        if part and not any(first):
            break  # no router looks at the content
        clean = net.parts.encode(item, generator(run.device, seed, part))
        for number, time in enumerate(times):
            rng = generator(run.device, seed, part, number)
            t = torch.full((net.flow.views * len(clean.streams["image"]),), time)
            view = observe(net, clean, t.to(run.device), rng, progress=run.progress)
            for index, (name, alignment) in enumerate(routed.items()):
                content = view.out.tokens(alignment.tap).without_prefix().tokens
                rows = weights_of(alignment.router, view.noised.sample_t, content)
                kept = seen.setdefault(name, [{} for _ in times])
                for column, values in rows.items():
                    kept[number].setdefault(column, []).append(values)
                    first[index] |= bool((values != values[0]).any())
    found = {}
    for index, name in enumerate(routed):
        if first[index]:
            found[name] = {
                column: [float(torch.cat(kept[column]).std()) for kept in seen[name]]
                for column in seen[name][0]
            }
    return found


def weights_of(router: Router, t: Tensor, content: Tensor) -> dict[str, Tensor]:
    """Return {"beta_<group>" or "alpha_<group>_<level>": weights [B]}."""
    intra, inter = router.weights(t, content)
    rows = {}
    for column, (group, levels) in enumerate(router.groups.items()):
        rows[f"beta_{group}"] = inter[:, column].cpu()
        for place, level in enumerate(levels):
            rows[f"alpha_{group}_{level}"] = intra[group][:, place].cpu()
    return rows


def evenness(table: Table, router: Router) -> dict[str, float]:
    """Return the mean over t of H / log n, {"beta" or group: 1 for equal weights .. 0}."""
    sizes = {"beta": len(router.groups)}
    sizes |= {group: len(levels) for group, levels in router.groups.items()}
    found = {}
    for row, size in sizes.items():
        values = table[f"entropy_{row}"]
        if size > 1:
            found[row] = sum(values) / len(values) / math.log(size)
    return found


# ---- what is written ------------------------------------------------------------------------


def rows_of(run: Run, name: str, policy: Policy) -> list[dict[str, Any]]:
    """Return the weights and entropies, one row for each iteration, time and column."""
    rows = []
    for iteration, table in policy.history.items():
        for column, values in table.items():
            if column == "t":
                continue
            for t, value in zip(table["t"], values, strict=True):
                where = {"run": run.name, "router": name, "iteration": iteration}
                rows.append({**where, "t": t, "column": column, "value": value, "content_std": ""})
    for column, values in policy.content.items():
        for number, value in enumerate(values):
            t = number / (CONTENT_TIMES - 1)
            where = {"run": run.name, "router": name, "iteration": run.source.iteration}
            rows.append({**where, "t": t, "column": column, "value": "", "content_std": value})
    return rows


def notes_of(run: Run, name: str, policy: Policy) -> list[str]:
    """Say whether the router has collapsed, and whether it depends on t and content."""
    notes = []
    even = evenness(policy.table, policy.router)
    for row, value in even.items():
        if value < COLLAPSED:
            what = "the betas" if row == "beta" else f"the alphas of {row}"
            notes.append(
                f"warning: {run.name} {name}: {what} have collapsed (evenness {value:.3f}; 1 is "
                "even, 0 has all weight on one). See `ahpa analyze target`: a router collapses "
                "onto the most constant level. entropy_floor prevents it."
            )
    shown = ", ".join(f"{row} {value:.2f}" for row, value in even.items())
    notes.append(f"{run.name} {name}: evenness over t: {shown}.")
    for group in policy.router.groups:
        beta = policy.table[f"beta_{group}"]
        notes.append(
            f"{run.name} {name}: beta of {group} goes from {beta[0]:.2f} at t = 0 (data) to "
            f"{beta[-1]:.2f} at t = 1 (noise)."
        )
    if policy.content:
        most = max(max(values) for values in policy.content.values())
        notes.append(f"{run.name} {name}: weights differ between images by up to {most:.3g} (std).")
    return notes


def finding(run: Run, name: str, policy: Policy) -> Finding:
    """Return the picture and figures of one router."""
    router = policy.router
    table = policy.table
    groups = list(router.groups)
    with styled():
        title = f"{run.name}: {type(router).__name__} of {name}, iteration {run.source.iteration}"
        columns = max(len(groups) + 1, 3)
        figure = new_figure(3.9 * columns, 6.6, title)
        axes = figure.subplots(2, columns)
        for axis in axes.flat:
            axis.set_visible(False)
        draw_lines(axes[0, 0], policy, "beta between groups", {g: f"beta_{g}" for g in groups})
        for column, (group, levels) in enumerate(router.groups.items(), start=1):
            names = {level: f"alpha_{group}_{level}" for level in levels}
            if len(levels) <= MOST_LINES:
                draw_lines(axes[0, column], policy, f"alpha in {group}", names)
            else:
                draw_alphas(axes[0, column], table, f"alpha in {group}", names)
        draw_entropies(axes[1, 0], policy)
        draw_training(axes[1, 1], policy, groups[0])
        draw_evenness(axes[1, 2], policy)
    summary = {
        "run": run.name,
        "router": name,
        "type": type(router).__name__,
        "evenness": {str(i): evenness(t, router) for i, t in policy.history.items()},
        "depends_on_content": bool(policy.content),
    }
    label = re.sub(r"[^\w.-]", "_", f"router_{run.name}_{name}")
    return Finding(label, rows_of(run, name, policy), figure, summary, notes_of(run, name, policy))


def draw_lines(axis: Any, policy: Policy, title: str, lines: Mapping[str, str]) -> None:
    """Draw columns of the last table over t, with a band of one standard deviation over images."""
    axis.set_visible(True)
    table = policy.table
    for number, (label, column) in enumerate(lines.items()):
        style = {**look(number), "linestyle": STYLES[number % len(STYLES)]}  # lines may coincide
        axis.plot(table["t"], table[column], label=label, **style)
        if column in policy.content:
            t = torch.linspace(0, 1, CONTENT_TIMES).tolist()
            nearest = [round(time * (len(table["t"]) - 1)) for time in t]
            pairs = list(zip(nearest, policy.content[column], strict=True))
            low = [table[column][place] - std for place, std in pairs]
            high = [table[column][place] + std for place, std in pairs]
            axis.fill_between(t, low, high, color=style["color"], alpha=0.18, lw=0)
    axis.set(title=title, xlabel=TIME, xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.legend()


def draw_alphas(axis: Any, table: Table, title: str, lines: Mapping[str, str]) -> None:
    """Draw many columns over t as colours, one row for each."""
    axis.set_visible(True)
    values = [table[column] for column in lines.values()]
    extent = (0, 1, -0.5, len(lines) - 0.5)
    options = {"aspect": "auto", "origin": "lower", "interpolation": "nearest", "vmin": 0}
    image = axis.imshow(values, extent=extent, cmap="viridis", **options)
    axis.grid(False)
    axis.set(title=title, xlabel=TIME)
    axis.set_yticks(range(len(lines)), list(lines), fontsize=7)
    axis.figure.colorbar(image, ax=axis)


def draw_entropies(axis: Any, policy: Policy) -> None:
    """Draw the entropies of the last table over t, as shares of the largest possible."""
    axis.set_visible(True)
    router, table = policy.router, policy.table
    sizes = {"beta": len(router.groups)}
    sizes |= {group: len(levels) for group, levels in router.groups.items()}
    for number, (row, size) in enumerate(sizes.items()):
        if size > 1:
            values = [value / math.log(size) for value in table[f"entropy_{row}"]]
            axis.plot(table["t"], values, label=row, **look(number))
    axis.axhspan(0, COLLAPSED, color="#D55E00", alpha=0.15, lw=0)
    axis.text(0.01, 0.02, "collapsed", fontsize=7, color="#D55E00")
    axis.set(title="entropy / largest entropy", xlabel=TIME, xlim=(0, 1), ylim=(0, 1.02))
    axis.legend()


def draw_training(axis: Any, policy: Policy, group: str) -> None:
    """Draw a group's beta over training (columns) and t (rows, noise at the top)."""
    axis.set_visible(True)
    iterations = sorted(policy.history)
    count = 11
    values = []
    for row in reversed(range(count)):
        line = []
        for iteration in iterations:
            beta = policy.history[iteration][f"beta_{group}"]
            line.append(beta[round(row / (count - 1) * (len(beta) - 1))])
        values.append(line)
    step = -(-len(iterations) // MOST_COLUMNS)
    labels = [f"{i:,}" if n % step == 0 else "" for n, i in enumerate(iterations)]
    rows = [f"{row / (count - 1):.1f}" for row in reversed(range(count))]
    title = f"beta of {group} over training"
    heat_map(axis, values, rows=rows, columns=labels, title=title, low=0.0, high=1.0)
    axis.set(xlabel="iteration", ylabel=TIME)


def draw_evenness(axis: Any, policy: Policy) -> None:
    """Draw the evenness of betas and alphas over training."""
    axis.set_visible(True)
    iterations = sorted(policy.history)
    found = [evenness(policy.history[i], policy.router) for i in iterations]
    for number, row in enumerate(found[0]):
        values = [even[row] for even in found]
        axis.plot(iterations, values, marker="o", ms=3, label=row, **look(number))
    axis.axhspan(0, COLLAPSED, color="#D55E00", alpha=0.15, lw=0)
    axis.set(title="evenness over training (mean over t)", xlabel="iteration", ylim=(0, 1.02))
    axis.legend()


def findings(run: Run, policies: Mapping[str, Policy]) -> Sequence[Finding]:
    """Return the picture and figures of every router of a run."""
    return [finding(run, name, policy) for name, policy in policies.items()]
