"""Levels of priors, groups of targets and blocks of the backbone on images, as colours: the first
three principal components become red, green and blue (AHPA, Figure 4)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..alignment.routed import RoutedAlignment
from ..registry.contracts import Tap
from .results import Finding, new_figure, styled
from .runs import Run, batches, generator, observe, want_all_levels
from .target import group_slices

COMPONENTS = 3
CLIPPED = 0.01  # share of the scores beyond each end of the colour scale
FLAT = 1e-3  # skewness below which the sign is taken from the largest loading


class Principal(NamedTuple):
    """Principal components.

    Attributes:
        mean: [C].
        components: Orthonormal columns [C, k], k at most 3.
        explained: Share of the variance of each, [k].
    """

    mean: Tensor
    components: Tensor
    explained: Tensor

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the scores [N, k] of vectors [N, C], in float64."""
        return (vectors.double() - self.mean) @ self.components


def principal(vectors: Tensor, count: int = COMPONENTS) -> Principal:
    """Return the first principal components of vectors [N, C].

    The sign of a component is undetermined. It is chosen so that the scores are skewed to the right
    (sum of cubes above 0), which does not depend on the order of the vectors or on a rotation of
    the channels, so that colours stay from one checkpoint or run to the next. Where the scores are
    symmetric, the largest loading becomes positive.
    """
    x = vectors.double()
    mean = x.mean(0)
    centred = x - mean
    values, found = torch.linalg.eigh(centred.mT @ centred / len(x))
    count = min(count, len(values))
    values = values.flip(0).clamp_min(0)
    components = found.flip(1)[:, :count]
    scores = centred @ components
    deviation = scores.square().mean(0).sqrt()
    skew = scores.pow(3).mean(0) / deviation.pow(3).clamp_min(1e-300)
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(skew.abs() > FLAT, skew, largest).sign()
    share = values[:count] / values.sum().clamp_min(1e-300)
    return Principal(mean, components * sign, share)


def colours(scores: Tensor) -> Tensor:
    """Map scores [N, k] to colours [N, 3] in [0, 1], each component between its 1 % and 99 % points
    over all vectors; missing components are 0.5."""
    low = scores.quantile(CLIPPED, 0)
    high = scores.quantile(1 - CLIPPED, 0)
    shown = ((scores - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    rest = scores.new_full((len(scores), COMPONENTS - scores.shape[1]), 0.5)
    return torch.cat([shown, rest], 1)


class Item(NamedTuple):
    """A column of pictures.

    Attributes:
        label: Its name.
        maps: Feature maps [rows, C, h, w].
    """

    label: str
    maps: Tensor

    def pictures(self) -> tuple[Tensor, list[float]]:
        """Return colours [rows, h, w, 3] and the explained shares."""
        vectors = self.maps.permute(0, 2, 3, 1)
        found = principal(vectors.flatten(0, 2))
        shown = colours(found.scores(vectors.flatten(0, 2)))
        return shown.view(*vectors.shape[:3], COMPONENTS), found.explained.tolist()


class Measured(NamedTuple):
    """What is drawn of a run.

    Attributes:
        images: [B, 3, H, W] in [0, 1].
        times: The times of groups and blocks.
        levels: Levels of the priors, one row for each image.
        groups: Groups of the routed targets, rows (image, time), the time running faster.
        blocks: The backbone's blocks, with the same rows.
    """

    images: Tensor
    times: list[float]
    levels: list[Item]
    groups: list[Item]
    blocks: list[Item]


@torch.no_grad()
def measure(
    run: Run,
    *,
    images: int = 6,
    batch: int = 6,
    seed: int = 0,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    chosen: Sequence[int] | None = None,
) -> Measured:
    """Compute levels, groups and blocks of a few images.

    Args:
        run: The run, which may be untrained.
        images: Number of images.
        batch: Images at once.
        seed: Which images, and the noise.
        times: Times of groups and blocks.
        chosen: These images instead, by their numbers in the data set.
    """
    net = run.net
    want_all_levels(net)
    taps = frozenset(Tap(block) for block in range(1, net.backbone.depth + 1)) | net.taps
    shown: list[Tensor] = []
    levels: dict[str, list[Tensor]] = {}
    groups: dict[str, list[Tensor]] = {}
    blocks: dict[str, list[Tensor]] = {}
    count = images if chosen is None else len(chosen)
    for part, item in enumerate(batches(run.dataset, count, batch=batch, seed=seed, chosen=chosen)):
        clean = net.parts.encode(item, generator(run.device, seed, part))
        assert clean.images is not None
        shown.append(clean.images.cpu())
        some = len(clean.images)
        at_time: dict[str, list[Tensor]] = {}
        for number, time in enumerate(times):
            rng = generator(run.device, seed, part)  # the same noise at every time
            t = torch.full((net.flow.views * some,), time, device=run.device)
            view = observe(net, clean, t, rng, progress=run.progress, taps=taps)
            features = net.parts.features(view)
            if number == len(times) // 2:
                for prior, found in features.items():
                    for level, values in found.items():
                        if values.ndim == 4 and not net.parts.priors[prior].levels[level].attention:
                            levels.setdefault(f"{prior}\n{level}", []).append(values[:some].cpu())
            for block in range(1, net.backbone.depth + 1):
                tokens = view.out.tokens(block).as_map()[:some]
                at_time.setdefault(f"block {block}", []).append(tokens.cpu())
            for name, alignment in net.alignments.items():
                if isinstance(alignment, RoutedAlignment):
                    for group, maps in group_maps(alignment, view, features):
                        label = f"target:{name}\n{group}"
                        at_time.setdefault(label, []).append(maps[:some].cpu())
        for label, parts in at_time.items():
            rows = torch.stack(parts, 1).flatten(0, 1)  # (image, time)
            place = blocks if label.startswith("block ") else groups
            place.setdefault(label.removeprefix("target:"), []).append(rows)
    return Measured(
        images=torch.cat(shown),
        times=list(times),
        levels=[Item(label, torch.cat(maps)) for label, maps in levels.items()],
        groups=[Item(label, torch.cat(maps)) for label, maps in groups.items()],
        blocks=[Item(label, torch.cat(maps)) for label, maps in blocks.items()],
    )


def group_maps(
    alignment: RoutedAlignment, view: Any, features: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield (group, maps [B, C, h, w]) of a routed target, and the whole as "target"."""
    router = alignment.router
    content = view.out.tokens(alignment.tap).without_prefix().tokens
    target = router(features[alignment.source], view.noised.sample_t, content)
    target = target[:, len(router.prefix) :]
    grid = alignment.geometry.grid
    slices = group_slices(alignment)
    parts = {**slices, "target": slice(None)} if len(slices) != 1 else slices
    for group, channels in parts.items():
        yield group, target[..., channels].mT.unflatten(2, grid)


# ---- what is written ------------------------------------------------------------------------


def findings(run: Run, found: Measured) -> list[Finding]:
    """Return the pictures of levels, groups and blocks; those that a run has."""
    sections: dict[str, tuple[list[Item], list[Any], str]] = {
        "levels": (found.levels, [""], "Levels of the priors"),
        "groups": (found.groups, found.times, "Groups of the routed target over t"),
        "blocks": (found.blocks, found.times, "Blocks of the backbone over t"),
    }
    made = []
    for name, (items, times, title) in sections.items():
        if items:
            title = f"{run.name}: {title}\n(three principal components)"
            made.append(finding(f"pca_{run.name}_{name}", found.images, items, times, title))
    return made


def finding(
    name: str, images: Tensor, items: Sequence[Item], times: Sequence[Any], title: str
) -> Finding:
    """Return one picture: a row for each image and time, a column for each item."""
    rows: list[dict[str, Any]] = []
    count = len(images) * len(times)
    cell = 0.95
    with styled():
        figure = new_figure(max(cell * (len(items) + 1) + 0.6, 4.2), cell * count + 1.1, title)
        axes = figure.subplots(count, len(items) + 1, squeeze=False)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
        for row in range(count):
            image, time = divmod(row, len(times))
            if times[time] != "":
                axes[row, 0].set_ylabel(f"t = {times[time]:g}", fontsize=8)
            if time == 0:
                axes[row, 0].imshow(images[image].permute(1, 2, 0).numpy())
        axes[0, 0].set_title("image", fontsize=8)
        for column, item in enumerate(items, start=1):
            shown, explained = item.pictures()
            share = 100 * sum(explained)
            axes[0, column].set_title(f"{item.label}\n{share:.0f} %", fontsize=7)
            for row in range(count):
                axes[row, column].imshow(shown[row].numpy(), interpolation="nearest")
            for number, value in enumerate(explained, start=1):
                label = item.label.replace("\n", " ")
                side = f"{item.maps.shape[-2]} x {item.maps.shape[-1]}"
                rows.append(
                    {
                        "item": label,
                        "component": number,
                        "explained": value,
                        "channels": item.maps.shape[1],
                        "grid": side,
                    }
                )
    return Finding(name, rows, figure, {"times": list(times)})
