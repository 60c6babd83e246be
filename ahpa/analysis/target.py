"""What a target asks for: how constant, how large and of what rank each level of a prior is, and
each group and the whole routed target at each t.

A cosine loss against a target that a constant vector already reaches asks for almost nothing, which
no loss curve shows: raw taps of autoencoders reach .5 to .94.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..alignment.routed import RoutedAlignment
from ..registry import UserError
from ..registry.contracts import Features, Prior
from .cost import alignments_of
from .results import TIME, Finding, heat_map, look, new_figure, styled
from .runs import Run, batches, generator, observe, want_all_levels

CONSTANT = 0.5  # cosine of a constant from which a note warns
EPS = 1e-16


class Shape(NamedTuple):
    """Figures of a set of vectors x_n [C].

    Attributes:
        constant_cosine: max over unit c of mean_n cos(x_n, c) = |mean_n x_n / |x_n||.
        rms: Root mean square of all values.
        mean_share: |mean x|^2 / mean |x|^2, the share of the energy that is constant.
        effective_rank: exp of the entropy of the singular values of the centred vectors,
            normalised to sum 1 (Roy and Vetterli, 2007); at most C.
        channels: C.
    """

    constant_cosine: float
    rms: float
    mean_share: float
    effective_rank: float
    channels: int


class Sums:
    """Sums over vectors [N, C] in float64, from which `Shape` follows."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | None = None
        self.unit: Tensor | None = None
        self.second: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Add vectors [N, C]."""
        x = vectors.double()
        unit = x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()
        if self.first is None or self.unit is None or self.second is None:
            width = x.shape[-1]
            self.first = x.new_zeros(width)
            self.unit = x.new_zeros(width)
            self.second = x.new_zeros(width, width)
        self.first += x.sum(0)
        self.unit += unit.sum(0)
        self.second += x.mT @ x
        self.count += len(x)

    def shape(self) -> Shape:
        """Return the figures."""
        assert self.first is not None and self.unit is not None and self.second is not None
        mean = self.first / self.count
        second = self.second / self.count
        energy = second.diagonal().sum()
        spread = torch.linalg.eigvalsh(second - torch.outer(mean, mean)).clamp_min(0)
        spread[spread < 1e-12 * energy] = 0  # rounding of a constant
        share = spread.sqrt() / spread.sqrt().sum().clamp_min(1e-300)
        entropy = -(share * share.clamp_min(1e-300).log()).sum()
        channels = len(mean)
        return Shape(
            constant_cosine=float((self.unit / self.count).norm()),
            rms=float((energy / channels).sqrt()),
            mean_share=float(mean.square().sum() / energy.clamp_min(1e-300)),
            effective_rank=float(entropy.exp()) if spread.any() else 0.0,
            channels=channels,
        )


def vectors_of(level: Tensor) -> Tensor:
    """Return the vectors of a level: [B, C, h, w] -> [B h w, C]; [B, C] stays."""
    return level.permute(0, 2, 3, 1).flatten(0, 2) if level.ndim == 4 else level


def group_slices(alignment: RoutedAlignment) -> dict[str, slice]:
    """Return the channels of each group in the routed target; empty if they are not laid side by
    side."""
    from ..routers.base import GroupedRouter

    router = alignment.router
    if not isinstance(router, GroupedRouter):
        return {}
    found, start = {}, 0
    for group in router.groups:
        found[group] = slice(start, start + router.channels[group])
        start += router.channels[group]
    return found


class Measured(NamedTuple):
    """Figures of the targets of a run.

    Attributes:
        levels: {(prior, level): figures} of the levels as they are.
        routed: {(alignment, group or "target"): [figures for each time]}.
        times: The times.
    """

    levels: dict[tuple[str, str], Shape]
    routed: dict[tuple[str, str], list[Shape]]
    times: list[float]


@torch.no_grad()
def measure(
    run: Run, *, images: int = 256, batch: int = 32, points: int = 6, seed: int = 0
) -> Measured:
    """Measure every level of the run's priors, and the alignments' routed targets over t.

    A group's features carry its beta, as in the loss; its cosine does not depend on it.

    Args:
        run: The run, which may be untrained.
        images: Number of images.
        batch: Images at once.
        points: Times in [0, 1], both ends included.
        seed: Which images, and the noise.

    Raises:
        UserError: If the run has no prior.
    """
    net = run.net
    if not net.parts.priors:
        raise UserError(
            f"{run.name} has no prior, so there is no target to look at; add one by --prior, or "
            "name a run that has one by --heads."
        )
    want_all_levels(net)
    times = torch.linspace(0, 1, points).tolist()
    levels: dict[tuple[str, str], Sums] = {}
    routed: dict[tuple[str, str], list[Sums]] = {}
    for part, item in enumerate(batches(run.dataset, images, batch=batch, seed=seed)):
        clean = net.parts.encode(item, generator(run.device, seed, part))
        for number, time in enumerate(times):
            rng = generator(run.device, seed, part, number)
            t = torch.full((net.flow.views * len(clean.streams["image"]),), time)
            view = observe(net, clean, t.to(run.device), rng, progress=run.progress)
            features = net.parts.features(view)
            if number == points // 2:  # only targets from inside the model depend on t
                add_levels(levels, features, net.parts.priors)
            for name, alignment in net.alignments.items():
                if isinstance(alignment, RoutedAlignment):
                    content = view.out.tokens(alignment.tap).without_prefix().tokens
                    own = features[alignment.source]
                    target = alignment.router(own, view.noised.sample_t, content)
                    target = target[:, len(alignment.router.prefix) :]
                    parts = {"target": slice(None), **group_slices(alignment)}
                    for group, channels in parts.items():
                        sums = routed.setdefault((name, group), [Sums() for _ in times])
                        sums[number].add(target[..., channels].flatten(0, 1))
    return Measured(
        {key: sums.shape() for key, sums in levels.items()},
        {key: [one.shape() for one in sums] for key, sums in routed.items()},
        times,
    )


def add_levels(
    levels: dict[tuple[str, str], Sums],
    features: Mapping[str, Features],
    priors: Mapping[str, Prior],
) -> None:
    """Add the maps and vectors of every prior; attention logits are left out."""
    for name, found in features.items():
        for level, values in found.items():
            if not priors[name].levels[level].attention:
                levels.setdefault((name, level), Sums()).add(vectors_of(values))


# ---- what is written ------------------------------------------------------------------------


def rows_of(run: Run, found: Measured) -> list[dict[str, Any]]:
    """Return the figures, one row for each level, and for each group and time."""
    rows: list[dict[str, Any]] = []
    for (prior, level), shape in found.levels.items():
        rows.append({"run": run.name, "kind": "level", "of": prior, "name": level, "t": ""})
        rows[-1] |= shape._asdict()
    for (alignment, group), shapes in found.routed.items():
        for t, shape in zip(found.times, shapes, strict=True):
            kind = "target" if group == "target" else "group"
            rows.append({"run": run.name, "kind": kind, "of": alignment, "name": group, "t": t})
            rows[-1] |= shape._asdict()
    return rows


def notes_of(run: Run, found: Measured) -> list[str]:
    """Say in words what the figures mean."""
    notes = []
    for prior in dict.fromkeys(prior for prior, _ in found.levels):
        own = {level: s for (name, level), s in found.levels.items() if name == prior}
        least = min(shape.constant_cosine for shape in own.values())
        most = max(shape.constant_cosine for shape in own.values())
        text = f"{run.name}: a constant reaches cosine {least:.2f} to {most:.2f} with {prior}"
        if most >= CONSTANT:
            text += (
                ". Levels near 1 are nearly constant, so cosine alignment with them asks for "
                "little; the prior SpatialNorm takes the constant out"
            )
        notes.append(f"{text}.")
        read = {
            level
            for alignment in alignments_of(run.net).values()
            for level in alignment.reads.get(prior, ())
        }
        sizes = [own[level].rms for level in read if level in own]
        if sizes and max(sizes) > 2 * min(sizes) > 0:
            notes.append(
                f"{run.name}: the RMS of {prior}'s levels that are read differs "
                f"{max(sizes) / min(sizes):.1f} times, so equal weights are not equal shares of "
                "the target."
            )
    for (alignment, group), shapes in found.routed.items():
        if group == "target":
            values = [shape.constant_cosine for shape in shapes]
            low, high = f"{min(values):.2f}", f"{max(values):.2f}"
            reached, when = (
                (low, "at every t") if low == high else (f"{low} to {high}", "depending on t")
            )
            notes.append(
                f"{run.name}: a constant reaches cosine {reached} with the target of {alignment}, "
                f"{when}."
            )
    return notes


def finding(measured: Sequence[tuple[Run, Measured]]) -> Finding:
    """Return the picture and figures of runs."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    labels: list[str] = []
    figures: list[Shape] = []
    several = len(measured) > 1
    for run, found in measured:
        rows += rows_of(run, found)
        notes += notes_of(run, found)
        for (prior, level), shape in found.levels.items():
            labels.append(f"{run.name} {prior} {level}" if several else f"{prior} {level}")
            figures.append(shape)
    kinds = {
        "constant_cosine": "best constant cosine",
        "mean_share": "constant share of energy",
        "rms": "RMS",
        "effective_rank": "effective rank",
    }
    with styled():
        height = max(3.4, 0.26 * len(labels) + 1.3)
        figure = new_figure(11.5, height, "Targets as they are, and routed over t")
        columns = figure.subplots(1, 5, width_ratios=(0.55, 0.55, 0.55, 0.55, 1.9))
        for axis, (key, title) in zip(columns, kinds.items(), strict=False):
            values = [[float(shape._asdict()[key])] for shape in figures]
            bounded = key in ("constant_cosine", "mean_share")
            heat_map(
                axis,
                values,
                rows=labels if axis is columns[0] else [""] * len(labels),
                columns=[""],
                title=title.replace(" ", "\n", 1),
                low=0.0,
                high=1.0 if bounded else None,
                digits=2 if bounded else 1,
            )
        axis = columns[-1]
        number = 0
        for run, found in measured:
            for (alignment, group), shapes in found.routed.items():
                label = f"{run.name} {alignment} {group}" if several else f"{alignment} {group}"
                width = 2.4 if group == "target" else 1.3
                cosines = [shape.constant_cosine for shape in shapes]
                axis.plot(found.times, cosines, label=label, lw=width, **look(number))
                number += 1
        axis.set(title="best constant cosine of the\nrouted target", xlabel=TIME)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        if number:
            axis.legend(loc="lower left")
    return Finding("target", rows, figure, {}, notes)
