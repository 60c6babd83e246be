"""Which block of a backbone resembles which teacher, and is there anything left to learn from it?
For a checkpoint, or a backbone before training, against every level of every prior, in bins of
noise.

CKNNA and linear CKA compare features averaged over an image's tokens; local-versus-distant
similarity looks at the tokens of an image; linear readouts ask how much of a teacher, or of the
labels, a linear map of the features explains on images that it was not fitted to. The backbone gets
the null condition, since a label would give the answer away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.denoiser import AlignedDenoiser
from ..registry import ConfigError, UserError, nearest
from ..registry.contracts import CleanPrior, Features, Prior, Tap
from ..routers.mixing import resize_to
from .results import Finding, heat_map, look, new_figure, styled
from .runs import Run, batches, generator, observe, want_all_levels

NEIGHBOURS = 10  # of CKNNA, as in REPA
PENALTY = 1e-3  # of ridge regressions, relative to the mean variance of a feature
FLOOR = 0.1  # least share of a layer's variance that its increment counts as (RARE)
LAYERS = 4  # of a teacher with more, these many are compared by the layer gap (RARE)
MOST_NUMBERS = 12  # teachers up to which the numbers of a matrix are written in
TOKENS = 16  # of an image that readouts look at
NAN = float("nan")


# ---- similarities ---------------------------------------------------------------------------


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return linear CKA (arXiv:1905.00414) of features [n, C] and [n, D], in [0, 1].

    |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) with centred columns.
    """
    x, y = centred(x), centred(y)
    first, second = x @ x.mT, y @ y.mT
    return float((first * second).sum() / (first.norm() * second.norm()).clamp_min(1e-300))


def centred(x: Tensor) -> Tensor:
    """Return features [n, C] in float64 without their mean."""
    x = x.double()
    return x - x.mean(0)


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased estimate of HSIC from kernels [n, n] (Song et al., 2012, eq. 5)."""
    n = len(first)
    k = first - first.diagonal().diag()
    m = second - second.diagonal().diag()
    total = (k * m.mT).sum()
    total = total + k.sum() * m.sum() / ((n - 1) * (n - 2))
    total = total - 2 * (k @ m).sum() / (n - 2)
    return total / (n * (n - 3))


def cknna(x: Tensor, y: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return CKNNA of features [n, C] and [n, D] (arXiv:2405.07987): CKA with inner products of
    unit vectors, only over pairs that are among the k nearest neighbours in both.

    HSIC(aK, aL) / sqrt(HSIC(bK, bK) HSIC(cL, cL)), where b and c mark the neighbours in K and L
    and a = b c; HSIC is the unbiased estimate.

    Raises:
        UserError: If there are not more images than neighbours.
    """
    if len(x) <= max(neighbours, 3):
        raise UserError(f"--num: CKNNA needs more than {neighbours} images, got {len(x)}.")
    kernels, masks = [], []
    for features in (x, y):
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        kernel = unit @ unit.mT
        near = kernel.clone().fill_diagonal_(-torch.inf).topk(neighbours, dim=1).indices
        kernels.append(kernel)
        masks.append(torch.zeros_like(kernel).scatter_(1, near, 1.0))
    (k, m), (b, c) = kernels, masks
    shared = unbiased_hsic(b * c * k, b * c * m)
    own = unbiased_hsic(b * k, b * k) * unbiased_hsic(c * m, c * m)
    return float(shared / own.clamp_min(1e-300).sqrt())


def local_distant(maps: Tensor, radius: float | None = None) -> float:
    """Return local-versus-distant similarity (iREPA, arXiv:2512.10794) of maps [B, C, h, w]:

        mean cos(x_i, x_j) over pairs with d(i, j) < r  -  the same over pairs with d(i, j) >= r

    d is the Manhattan distance on the grid. Pairs of a token with itself are left out.

    Args:
        maps: Feature maps.
        radius: r; None for half the longer side, as in iREPA.
    """
    tall, wide = maps.shape[2:]
    radius = max(tall, wide) / 2 if radius is None else radius
    rows = torch.arange(tall, device=maps.device).repeat_interleave(wide)
    columns = torch.arange(wide, device=maps.device).repeat(tall)
    distance = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()
    near = (distance < radius) & (distance > 0)
    far = distance >= radius
    if not near.any() or not far.any():
        return NAN
    unit = torch.nn.functional.normalize(maps.flatten(2).mT.double(), dim=-1)
    totals = torch.zeros(2, dtype=torch.float64, device=maps.device)
    for image in unit:
        cosine = image @ image.mT
        totals += torch.stack([cosine[near].mean(), cosine[far].mean()])
    return float((totals[0] - totals[1]) / len(unit))


# ---- linear readouts ------------------------------------------------------------------------


class Readout(NamedTuple):
    """A linear map y = (x - x_mean) W + y_mean that was fitted by ridge regression."""

    x_mean: Tensor
    y_mean: Tensor
    weights: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Predict [n, D] from features [n, C]."""
        return (x.double() - self.x_mean) @ self.weights + self.y_mean


def ridge(x: Tensor, y: Tensor, penalty: float = PENALTY) -> Readout:
    """Fit y [n, D] by x [n, C]: W = (X^T X + p n s I)^-1 X^T Y for centred X and Y, where s is the
    mean variance of a feature and p the penalty."""
    x_mean, y_mean = x.double().mean(0), y.double().mean(0)
    own, goal = x.double() - x_mean, y.double() - y_mean
    gram = own.mT @ own
    strength = penalty * gram.diagonal().mean().clamp_min(1e-300)
    gram.diagonal().add_(strength)
    return Readout(x_mean, y_mean, torch.linalg.solve(gram, own.mT @ goal))


def explained(x: Tensor, y: Tensor, train: Tensor) -> float:
    """Return R^2 of a ridge readout on held-out rows: 1 - sum |y - y^|^2 / sum |y - mean y|^2.

    Args:
        x: Features [n, C].
        y: What is read out [n, D].
        train: Which rows it is fitted to, bool [n]; the others count.
    """
    found = ridge(x[train], y[train])
    rest = y[~train].double()
    left = (rest - found(x[~train])).square().sum()
    return float(1 - left / (rest - rest.mean(0)).square().sum().clamp_min(1e-300))


def accuracy(x: Tensor, labels: Tensor, train: Tensor) -> float:
    """Return the accuracy of a linear probe on held-out rows: a ridge readout of one-hot labels, of
    which the largest output counts. Features are standardised first.

    Args:
        x: Features [n, C].
        labels: Labels [n].
        train: Which rows it is fitted to, bool [n].
    """
    x = x.double()
    scale = x[train].std(0).clamp_min(1e-12)
    x = (x - x[train].mean(0)) / scale
    classes = torch.unique(labels)
    goal = (labels[:, None] == classes).double()
    guess = ridge(x[train], goal[train])(x[~train]).argmax(1)
    return float((classes[guess] == labels[~train]).double().mean())


def increments(layers: Sequence[Tensor], train: Tensor) -> list[tuple[Tensor, float]]:
    """Return what each layer of a teacher adds to the layer before it (RARE's layer choice).

    The ridge readout from the layer before is taken out; the first layer is taken whole.

    Args:
        layers: Tokens [n, C_l], shallow -> deep.
        train: Which rows the readouts are fitted to, bool [n].

    Returns:
        (increment [n, C_l] in float64, mean |T_l - mean|^2 over held-out rows) for each layer.
    """
    found = []
    for number, layer in enumerate(layers):
        before = ridge(layers[number - 1][train], layer[train]) if number else None
        mean = layer[train].double().mean(0)
        rest = layer.double() - (mean if before is None else before(layers[number - 1]))
        energy = (layer[~train].double() - mean).square().sum(1).mean()
        found.append((rest, float(energy)))
    return found


def layer_gap(student: Tensor, increment: Tensor, energy: float, train: Tensor) -> float:
    """Return how much of a teacher layer's increment a block does not hold, in about [0, 1]:

        gap = mean |D - D^|^2 / max( mean |D|^2, 0.1 mean |T - mean T|^2 )

    D^ is a ridge readout from the block's tokens; all means are over held-out rows. The floor keeps
    a layer that hardly adds anything from winning. FIELD notes of RARE give the increments, the
    readout and the floor of 0.1; that the floor is applied like this is our reading.

    Args:
        student: Tokens of a block [n, D].
        increment: What the layer adds [n, C].
        energy: Mean |T - mean T|^2 of the layer.
        train: Which rows the readout is fitted to, bool [n].
    """
    read = ridge(student[train], increment[train])
    rest = increment[~train]
    left = (rest - read(student[~train])).square().sum(1).mean()
    own = float(rest.square().sum(1).mean())
    return float(left) / max(own, FLOOR * energy, 1e-300)


def chosen_layers(prior: Prior, wanted: Sequence[str], place: str) -> list[str]:
    """Return the levels that are compared by the layer gap: those wanted, else up to four maps with
    equal steps, the last included.

    Raises:
        ConfigError: For a level that the prior does not have.
    """
    maps = [name for name, spec in prior.levels.items() if spec.is_map]
    for name in wanted:
        if name not in maps:
            raise ConfigError(f"--layers: {place} has no map {name!r}{nearest(name, maps)}")
    if wanted:
        return [name for name in maps if name in wanted]
    count = min(LAYERS, len(maps))
    return [maps[(number + 1) * len(maps) // count - 1] for number in range(count)]


# ---- features -------------------------------------------------------------------------------


class Teacher(NamedTuple):
    """A level of a prior over all images.

    Attributes:
        pooled: Mean over the map, or the vector itself [N, C].
        tokens: Some tokens of each image on the student's grid [N, K, C]; None for a vector.
        similarity: Local-versus-distant similarity on the level's own grid; nan for a vector.
    """

    pooled: Tensor
    tokens: Tensor | None
    similarity: float


class Student(NamedTuple):
    """A block over all images in one bin of noise; see `Teacher`."""

    pooled: Tensor
    tokens: Tensor
    similarity: float


class Parts(NamedTuple):
    """What is collected of one level or block, a list over the batches."""

    pooled: list[Tensor]
    tokens: list[Tensor]
    similarity: list[tuple[int, float]]


def similarity_of(parts: Parts) -> float:
    """Return the mean over images of a similarity that was measured batch by batch."""
    total = sum(count for count, _ in parts.similarity)
    return sum(count * value for count, value in parts.similarity) / total if total else NAN


@contextmanager
def only_moving(net: AlignedDenoiser, first: bool) -> Iterator[None]:
    """Leave out priors that look at the clean batch alone, except in the first bin."""
    parts = net.parts
    whole = dict(parts.wanted)
    if not first:
        for name, prior in parts.priors.items():
            if isinstance(prior, CleanPrior):
                parts.wanted[name] = ()
    try:
        yield
    finally:
        parts.wanted = whole


@torch.no_grad()
def collect(
    run: Run,
    *,
    number: int,
    bins: int,
    images: int,
    batch: int,
    seed: int,
    blocks: Sequence[int],
    known: Mapping[str, Teacher],
) -> tuple[dict[int, Student], dict[str, Teacher], Tensor | None]:
    """Compute blocks and teachers for all images in one bin of noise.

    Args:
        run: The run.
        number: The bin, from 0.
        bins: Number of bins.
        images: Number of images.
        batch: Images at once.
        seed: Which images, times, noise and tokens.
        blocks: Numbers of the blocks.
        known: The teachers of the bins before.

    Returns:
        {block: student}, {"<prior> <level>": teacher}, and the labels [N] or None.
    """
    net = run.net
    taps = frozenset(Tap(block) for block in blocks) | net.taps
    students: dict[int, Parts] = {block: Parts([], [], []) for block in blocks}
    teachers: dict[str, Parts] = {}
    labels: list[Tensor] = []
    with only_moving(net, first=not known):
        for part, item in enumerate(batches(run.dataset, images, batch=batch, seed=seed)):
            clean = net.parts.encode(item, generator(run.device, seed, part))
            some = len(clean.streams["image"])
            rng = generator(run.device, seed, part, number)
            share = torch.rand(net.flow.views * some, generator=rng, device=run.device)
            t = (number + share) / bins
            view = observe(net, clean, t, rng, progress=run.progress, taps=taps, unconditional=True)
            picked = picked_tokens(net, some, seed, part).to(run.device)
            for block in blocks:
                maps = view.out.tokens(block).as_map()[:some]
                add_maps(students[block], maps, maps, picked)
            for prior, features in net.parts.features(view).items():
                add_features(teachers, net, prior, features, picked, some)
            if clean.labels is not None:
                labels.append(clean.labels.cpu())
    found = dict(known)
    for name, parts in teachers.items():
        tokens = torch.cat(parts.tokens) if parts.tokens else None
        found[name] = Teacher(torch.cat(parts.pooled), tokens, similarity_of(parts))
    seen = {
        block: Student(torch.cat(parts.pooled), torch.cat(parts.tokens), similarity_of(parts))
        for block, parts in students.items()
    }
    return seen, found, torch.cat(labels) if labels else None


def picked_tokens(net: AlignedDenoiser, images: int, seed: int, part: int) -> Tensor:
    """Return the numbers of the tokens that readouts look at, [images, K]."""
    total = net.backbone.grid[0] * net.backbone.grid[1]
    rng = torch.Generator().manual_seed(seed * 1000003 + part)
    scores = torch.rand(images, total, generator=rng)
    return scores.argsort(1)[:, : min(TOKENS, total)]


def add_maps(parts: Parts, own: Tensor, on_grid: Tensor, picked: Tensor) -> None:
    """Add maps [B, C, h, w] of one batch, and their tokens on the student's grid."""
    parts.pooled.append(own.double().mean((2, 3)).cpu())
    tokens = on_grid.flatten(2).mT.float()
    index = picked[..., None].expand(-1, -1, tokens.shape[-1])
    parts.tokens.append(tokens.gather(1, index).cpu())
    parts.similarity.append((len(own), local_distant(on_grid.float())))


def add_features(
    teachers: dict[str, Parts],
    net: AlignedDenoiser,
    prior: str,
    features: Features,
    picked: Tensor,
    images: int,
) -> None:
    """Add the levels of a prior of one batch; attention logits are left out."""
    for level, values in features.items():
        spec = net.parts.priors[prior].levels[level]
        if spec.attention:
            continue
        parts = teachers.setdefault(f"{prior} {level}", Parts([], [], []))
        if spec.is_vector:
            parts.pooled.append(values[:images].double().cpu())
        else:
            own = values[:images].float()
            add_maps(parts, own, resize_to(own, net.backbone.grid, "bilinear"), picked)


# ---- the measurement ------------------------------------------------------------------------


class Pair(NamedTuple):
    """A block against a level in one bin.

    Attributes:
        cknna: CKNNA of pooled features.
        cka: Linear CKA of pooled features.
        r2: R^2 of the readout of the level's tokens (of the vector for a vector level).
        gap: Layer gap; nan if the level is not among the compared layers.
    """

    cknna: float
    cka: float
    r2: float
    gap: float


class Alone(NamedTuple):
    """A block in one bin, or a level, by itself.

    Attributes:
        similarity: Local-versus-distant similarity.
        accuracy: Accuracy of the linear probe; nan without labels.
    """

    similarity: float
    accuracy: float


class Measured(NamedTuple):
    """What was found of a run.

    Attributes:
        pairs: {(bin, block, teacher): figures}; a teacher is "<prior> <level>".
        blocks: {(bin, block): figures}.
        teachers: {teacher: figures}.
        between: {(teacher, teacher): CKNNA}.
        bins: Number of bins.
    """

    pairs: dict[tuple[int, int, str], Pair]
    blocks: dict[tuple[int, int], Alone]
    teachers: dict[str, Alone]
    between: dict[tuple[str, str], float]
    bins: int


def measure(
    run: Run,
    *,
    images: int = 512,
    batch: int = 64,
    bins: int = 4,
    seed: int = 0,
    blocks: Sequence[int] | None = None,
    layers: Sequence[str] = (),
) -> Measured:
    """Compare blocks with the levels of all priors of a run, in bins of noise.

    Half of the images fit the readouts, the other half judges them.

    Args:
        run: The run, which may be untrained.
        images: Number of images, more than twice `NEIGHBOURS`.
        batch: Images at once.
        bins: Equal bins of t in [0, 1].
        seed: Which images, times, noise and tokens.
        blocks: Numbers of the blocks; None for all.
        layers: Levels that the layer gap compares; () for up to four of each prior.

    Raises:
        UserError: If the run has no prior, or there are too few images.
    """
    net = run.net
    if not net.parts.priors:
        raise UserError(
            f"{run.name} has no prior to compare with; add one, such as --prior "
            "\"teacher=dict(type='TimmEncoder')\"."
        )
    if images <= 2 * NEIGHBOURS:
        raise UserError(f"--num: more than {2 * NEIGHBOURS} images are needed, got {images}.")
    chosen = list(range(1, net.backbone.depth + 1)) if blocks is None else list(blocks)
    for block in chosen:
        if not 1 <= block <= net.backbone.depth:
            raise ConfigError(
                f"--blocks: block {block} does not exist; blocks are 1..{net.backbone.depth}."
            )
    priors = net.parts.priors
    only = next(iter(priors)) if len(priors) == 1 else None
    if layers and only is None:
        raise ConfigError("--layers: needs a run with one prior, since names differ between them.")
    compared = {
        f"{name} {level}": name
        for name, prior in priors.items()
        for level in chosen_layers(prior, layers, name)
    }
    want_all_levels(net)
    train = torch.zeros(images, dtype=torch.bool)
    rng = torch.Generator().manual_seed(seed)
    train[torch.randperm(images, generator=rng)[: images // 2]] = True
    pairs: dict[tuple[int, int, str], Pair] = {}
    alone: dict[tuple[int, int], Alone] = {}
    teachers: dict[str, Teacher] = {}
    steps: dict[str, tuple[Tensor, float]] = {}
    labels: Tensor | None = None
    for number in range(bins):
        students, teachers, labels = collect(
            run,
            number=number,
            bins=bins,
            images=images,
            batch=batch,
            seed=seed,
            blocks=chosen,
            known=teachers,
        )
        steps = layer_steps(teachers, compared, train)
        for block, student in students.items():
            alone[number, block] = judged(student.pooled, student.similarity, labels, train)
            for name, teacher in teachers.items():
                pairs[number, block, name] = compare(student, teacher, train, steps.get(name))
    between = {}
    names = list(teachers)
    for place, first in enumerate(names):
        for second in names[place:]:
            value = cknna(teachers[first].pooled, teachers[second].pooled)
            between[first, second] = between[second, first] = value
    own = {n: judged(t.pooled, t.similarity, labels, train) for n, t in teachers.items()}
    return Measured(pairs, alone, own, between, bins)


def layer_steps(
    teachers: Mapping[str, Teacher], compared: Mapping[str, str], train: Tensor
) -> dict[str, tuple[Tensor, float]]:
    """Return the increments of the compared layers, prior by prior."""
    found: dict[str, tuple[Tensor, float]] = {}
    for prior in dict.fromkeys(compared.values()):
        names = [name for name, of in compared.items() if of == prior]
        layers, rows = [], train
        for name in names:
            tokens = teachers[name].tokens
            assert tokens is not None
            layers.append(tokens.flatten(0, 1))
            rows = train.repeat_interleave(tokens.shape[1])
        found |= dict(zip(names, increments(layers, rows), strict=True))
    return found


def judged(pooled: Tensor, similarity: float, labels: Tensor | None, train: Tensor) -> Alone:
    """Return the figures of a block or level by itself."""
    return Alone(similarity, NAN if labels is None else accuracy(pooled, labels, train))


def compare(
    student: Student, teacher: Teacher, train: Tensor, step: tuple[Tensor, float] | None
) -> Pair:
    """Compare a block with a level in one bin."""
    gap = NAN
    if teacher.tokens is None:
        r2 = explained(student.pooled, teacher.pooled, train)
    else:
        rows = train.repeat_interleave(student.tokens.shape[1])
        tokens = student.tokens.flatten(0, 1)
        r2 = explained(tokens, teacher.tokens.flatten(0, 1), rows)
        if step is not None:
            gap = layer_gap(tokens, *step, rows)
    return Pair(
        cknna(student.pooled, teacher.pooled), linear_cka(student.pooled, teacher.pooled), r2, gap
    )


# ---- what is written ------------------------------------------------------------------------


def rows_of(run: Run, found: Measured) -> list[dict[str, Any]]:
    """Return the figures, one row for each block, bin and teacher; blocks, and teachers, by
    themselves have rows too."""
    rows = []

    def row(kind: str, block: Any, number: int | None, teacher: str, **figures: float) -> None:
        low = "" if number is None else number / found.bins
        high = "" if number is None else (number + 1) / found.bins
        where = {"run": run.name, "kind": kind, "block": block, "t_low": low, "t_high": high}
        keys = (*Pair._fields, *Alone._fields)
        rows.append({**where, "teacher": teacher, **{key: figures.get(key, "") for key in keys}})

    for (number, block, teacher), pair in found.pairs.items():
        row("pair", block, number, teacher, **pair._asdict())
    for (number, block), figures in found.blocks.items():
        row("block", block, number, "", **figures._asdict())
    for teacher, figures in found.teachers.items():
        row("teacher", "", None, teacher, **figures._asdict())
    for (first, second), value in found.between.items():
        row("teachers", "", None, f"{first} | {second}", cknna=value)
    return rows


def mean_over_bins(found: Measured, block: int, teacher: str, figure: str) -> float:
    """Return the mean of a pair's figure over the bins."""
    values = [
        float(found.pairs[number, block, teacher]._asdict()[figure]) for number in range(found.bins)
    ]
    return sum(values) / len(values)


def best_block(found: Measured, teacher: str) -> int:
    """Return the block with the highest CKNNA, averaged over the bins."""
    blocks = dict.fromkeys(block for _, block in found.blocks)
    return max(blocks, key=lambda block: mean_over_bins(found, block, teacher, "cknna"))


def notes_of(run: Run, found: Measured) -> list[str]:
    """Answer in words: which block, which teacher, is there anything left to learn."""
    wide = max(len(teacher) for teacher in found.teachers)
    heads = ("block", "CKNNA", "R2 clean", "R2 noisy", "probe", "LDS")
    notes = [f"{run.name}: each teacher, and the block that is closest to it"]
    notes.append(" " * wide + "".join(f"{head:>10s}" for head in heads))
    for teacher, figures in found.teachers.items():
        block = best_block(found, teacher)
        values = (
            mean_over_bins(found, block, teacher, "cknna"),
            found.pairs[0, block, teacher].r2,
            found.pairs[found.bins - 1, block, teacher].r2,
            figures.accuracy,
            figures.similarity,
        )
        shown = "".join(f"{value:>10.2f}" for value in values)
        notes.append(f"{teacher:{wide}s}{block:>10d}{shown}")
    own = [found.blocks[0, block].accuracy for block in dict.fromkeys(b for _, b in found.blocks)]
    notes.append(
        "R2: share of the teacher that a linear readout of the block explains in the cleanest and "
        "the noisiest bin; probe: accuracy of a linear probe of the teacher itself (of the blocks, "
        f"cleanest bin: {min(own):.2f} to {max(own):.2f}); LDS: its local-distant similarity."
    )
    for prior in dict.fromkeys(teacher.partition(" ")[0] for teacher in found.teachers):
        gaps = {}
        for teacher in found.teachers:
            block = best_block(found, teacher)
            gap = mean_over_bins(found, block, teacher, "gap")
            if teacher.partition(" ")[0] == prior and is_compared(found, teacher):
                gaps[teacher] = gap
        if gaps:
            most = max(gaps, key=lambda teacher: gaps[teacher])
            shown = ", ".join(f"{name.partition(' ')[2]} {gap:.2f}" for name, gap in gaps.items())
            notes.append(
                f"{run.name}: layer gap of {prior} ({shown}): most is left to learn from "
                f"{most.partition(' ')[2]}."
            )
    if any(pair.r2 < 0 for pair in found.pairs.values()):
        notes.append(
            "R2 below 0, which comes with layer gaps above 1: on new images such a readout does "
            "worse than the mean, since it was fitted to too few. Raise --num."
        )
    return notes


def finding(run: Run, found: Measured) -> Finding:
    """Return the picture and figures of a run."""
    blocks = list(dict.fromkeys(block for _, block in found.blocks))
    teachers = list(found.teachers)
    middles = [(number + 0.5) / found.bins for number in range(found.bins)]
    columns = [str(block) for block in blocks]
    with styled():
        upper = max(2.6, 0.21 * len(teachers) + 0.9)
        title = f"{run.name}, iteration {run.source.iteration}, weights: {run.weights}"
        figure = new_figure(14, upper + 3.4, title)
        axes = figure.subplots(2, 3, height_ratios=(upper, 3.1))
        for axis, (key, text) in zip(
            axes[0],
            {
                "cknna": "CKNNA, mean over noise",
                "r2": "R² of a linear readout, mean over noise",
            }.items(),
            strict=False,
        ):
            values = [[mean_over_bins(found, b, name, key) for b in blocks] for name in teachers]
            labels = teachers if key == "cknna" else [""] * len(teachers)
            heat_map(axis, values, rows=labels, columns=columns, title=text)
            axis.set_xlabel("block")
        values = [[found.between[a, b] for b in teachers] for a in teachers]
        numbers = [str(place) for place in range(1, len(teachers) + 1)]
        listed = [f"{place} {name}" for place, name in zip(numbers, teachers, strict=True)]
        between = "CKNNA between teachers"
        heat_map(
            axes[0, 2],
            values,
            rows=listed,
            columns=numbers,
            title=between,
            low=0,
            high=1,
            numbers=len(teachers) <= MOST_NUMBERS,
        )
        axes[0, 2].tick_params(axis="x", labelsize=7)
        for axis, key, text in (
            (axes[1, 0], "accuracy", "accuracy of a linear probe"),
            (axes[1, 1], "similarity", "local minus distant similarity"),
        ):
            for number in range(found.bins):
                low, high = number / found.bins, (number + 1) / found.bins
                values_of = [float(found.blocks[number, b]._asdict()[key]) for b in blocks]
                style = {**look(number), "marker": "o", "ms": 3}
                axis.plot(blocks, values_of, label=f"t {low:.2f} to {high:.2f}", **style)
            best = max(teachers, key=lambda name: nan_last(found.teachers[name]._asdict()[key]))
            level = float(found.teachers[best]._asdict()[key])
            axis.axhline(level, color="0.4", lw=1, ls=":", label=f"best teacher: {best}")
            axis.set(title=text, xlabel="block", xticks=blocks)
            axis.legend(fontsize=7, frameon=True, framealpha=0.85, edgecolor="none")
        compared = [name for name in teachers if is_compared(found, name)]
        for place, name in enumerate(compared):
            block = best_block(found, name)
            gaps = [found.pairs[number, block, name].gap for number in range(found.bins)]
            label = f"{name}, block {block}"
            axes[1, 2].plot(middles, gaps, label=label, marker="o", ms=3, **look(place))
        axes[1, 2].set(title="layer gap: what is left to learn", xlabel="t (0 data, 1 noise)")
        axes[1, 2].set(xlim=(0, 1), ylim=(0, None))
        axes[1, 2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    summary = {
        name: {"closest_block": best_block(found, name), **figures._asdict()}
        for name, figures in found.teachers.items()
    }
    name = f"probe_{run.name}"
    return Finding(name, rows_of(run, found), figure, summary, notes_of(run, found))


def is_compared(found: Measured, teacher: str) -> bool:
    """Whether a level is among those of the layer gap."""
    return any(
        math.isfinite(pair.gap) for (_, _, name), pair in found.pairs.items() if name == teacher
    )


def nan_last(value: float) -> float:
    """Return a value by which nan sorts below everything."""
    return value if math.isfinite(value) else -float("inf")
