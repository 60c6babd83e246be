"""The gradient signal-to-noise ratio of an alignment over t (AHPA, eq. 1 and 6).

    G = |mean_i g_i|^2 / ( 1/(B-1) sum_i |g_i - mean g|^2 )

g_i is the gradient of the alignment loss of image i with respect to chosen parameters of the
backbone. Gradients without a common direction give about 1/B, so G is reported raw, times B
(about 1 without a common direction), and minus 1/B, which estimates |E g|^2 / tr Cov g without bias
from B. The paper does not say which parameters, nor the B of its figures.

Only sums are needed: with S = sum_i |g_i|^2 the variance is (S - B |mean g|^2) / (B - 1). The norms
|g_i| come from one backward pass of the batch ("ghost norms"): for a linear layer with inputs a and
output gradients d, |g_i|^2 = sum_{n,m} (a_in . a_im) (d_in . d_im). Parameters of any other kind
are differentiated one image at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..alignment.routed import RoutedAlignment
from ..engine.denoiser import AlignedDenoiser
from ..registry import ConfigError, UserError, nearest
from ..registry.contracts import Alignment, Clean, Features, Router, TargetView, TextCond
from ..registry.values import Losses, Progress
from .cost import alignments_of
from .results import TIME, Finding, look, new_figure, styled
from .runs import Run, batches, generator, observe

BLOCK = "block"
CHECKED = 4  # images of which the loss is also computed one by one
TOLERANCE = 1e-4  # relative difference of a batch's loss and the mean of its images' losses
SMALLEST = 1e-3  # loss below which that difference is absolute
GRAM = 1 << 24  # numbers of the Gram matrices that are held at once
HIGH_NOISE = 0.5  # t from which a bin counts as high noise; the paper gives no boundary


class Target(NamedTuple):
    """What an alignment is differentiated for.

    Attributes:
        alignment: Name of the alignment.
        level: "routed" for the target it is trained on, else "<group>/<level>": that level alone.
        router: The router that takes the alignment's place; None for its own.
    """

    alignment: str
    level: str = "routed"
    router: Router | None = None


class Moments(NamedTuple):
    """Sums over the gradients of B images.

    Attributes:
        images: B.
        squared_mean: |mean g|^2.
        squares: sum_i |g_i|^2.
    """

    images: int
    squared_mean: float
    squares: float

    @property
    def variance(self) -> float:
        """1/(B-1) sum_i |g_i - mean g|^2."""
        spread = self.squares - self.images * self.squared_mean
        return max(spread, 0.0) / (self.images - 1)

    @property
    def gsnr(self) -> float:
        """G; nan if all gradients are zero, infinite if they are equal."""
        if self.variance == 0:
            return float("inf") if self.squared_mean else float("nan")
        return self.squared_mean / self.variance


# ---- targets and parameters -----------------------------------------------------------------


class OneLevel(Router):
    """A router that gives all weight to one level of one group.

    The other groups' channels of the target are zero, so the head keeps its shape.

    Args:
        router: The router whose levels and mixing are used.
        group: Name of the group.
        level: Name of a level in it.
    """

    def __init__(self, *, router: Router, group: str, level: str) -> None:
        super().__init__(levels=router.levels, geometry=router.geometry)
        self.inner = router
        self.groups = router.groups
        self.out_dim = router.out_dim
        self.used_levels = router.used_levels
        self.prefix = router.prefix
        self.group = group
        self.level = level

    def weights(self, t: Tensor, content: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the weights of the inner router's groups and levels, one of them 1."""
        intra = {}
        inter = torch.zeros(len(t), len(self.groups), device=t.device)
        for column, (group, levels) in enumerate(self.groups.items()):
            alpha = torch.zeros(len(t), len(levels), device=t.device)
            alpha[:, levels.index(self.level) if group == self.group else 0] = 1
            intra[group] = alpha
            inter[:, column] = float(group == self.group)
        return intra, inter

    def mix(self, features: Features, intra: Mapping[str, Tensor], inter: Tensor) -> Tensor:
        """Return the inner router's target for these weights."""
        return self.inner.mix(features, intra, inter)


def targets_of(net: AlignedDenoiser, *, levels: bool) -> list[Target]:
    """List what is differentiated: every alignment, and each level of routed ones if asked for."""
    found = []
    for name, alignment in alignments_of(net).items():
        found.append(Target(name))
        if levels and isinstance(alignment, RoutedAlignment):
            router = alignment.router
            for group, members in router.groups.items():
                for level in members:
                    one = OneLevel(router=router, group=group, level=level)
                    found.append(Target(name, f"{group}/{level}", one))
    return found


@contextmanager
def routed_by(alignment: nn.Module, router: Router | None) -> Iterator[None]:
    """Replace an alignment's router for a while; None leaves it."""
    if router is None:
        yield
        return
    assert isinstance(alignment, RoutedAlignment)
    own = alignment.router
    alignment.router = router
    try:
        yield
    finally:
        alignment.router = own


def shared_parameters(
    net: AlignedDenoiser, alignment: Alignment, chosen: str
) -> dict[str, nn.Parameter]:
    """Return the parameters of the backbone that gradients are taken of, by name.

    Args:
        net: The network.
        alignment: The alignment.
        chosen: "block" for the blocks that the alignment taps, "backbone" for everything, or the
            beginning of names such as "blocks.2.attn".

    Raises:
        ConfigError: If no parameter has such a name.
    """
    named = dict(net.backbone.named_parameters())
    if chosen == "backbone":
        return named
    if chosen == BLOCK:
        blocks = {id(net.backbone.blocks[tap.block - 1]) for tap in alignment.taps}
        own = {
            id(parameter)
            for block in net.backbone.blocks
            if id(block) in blocks
            for parameter in block.parameters()
        }
        return {name: parameter for name, parameter in named.items() if id(parameter) in own}
    found = {
        name: parameter
        for name, parameter in named.items()
        if name == chosen or name.startswith(f"{chosen}.")
    }
    if not found:
        parts = {".".join(name.split(".")[:2]) for name in named} | {BLOCK, "backbone"}
        raise ConfigError(f"--params: the backbone has no {chosen!r}{nearest(chosen, parts)}")
    return found


# ---- the loss -------------------------------------------------------------------------------


def loss_of(losses: Losses) -> tuple[Tensor, bool]:
    """Return the loss of an alignment, and whether its schedule's weight counts.

    The terms are weighted as in training; where the schedule has ended and all weights are 0, they
    all get the weight 1, since a common factor does not change G.
    """
    weights = [float(term.weight) for term in losses.terms]
    if any(weights):
        return losses.total, True
    return torch.stack([term.value for term in losses.terms]).sum(), False


def alignment_loss(
    net: AlignedDenoiser, target: Target, view: TargetView, features: Mapping[str, Features]
) -> tuple[Tensor, bool]:
    """Return the loss of a target for a batch, and whether its schedule's weight counts."""
    alignment = net.alignments[target.alignment]
    with routed_by(alignment, target.router):
        return loss_of(alignment(view, features, view.progress))


def take(value: Any, rows: Sequence[int], count: int) -> Any:
    """Return rows of every tensor or list of `count` samples in nested values."""
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: take(part, rows, count) for key, part in value.items()}
    if isinstance(value, TextCond):
        return TextCond(*(take(part, rows, count) for part in value))
    if isinstance(value, (list, tuple)) and len(value) == count:
        return [value[row] for row in rows]
    return value


def part_of_batch(
    net: AlignedDenoiser,
    view: TargetView,
    features: Mapping[str, Features],
    images: Sequence[int],
) -> tuple[TargetView, Mapping[str, Features]]:
    """Compute some images of a batch by themselves, with their own noise, times and targets.

    Args:
        net: The network.
        view: The batch of B images.
        features: Its features.
        images: Numbers of the images in the batch.
    """
    noised, clean = view.noised, view.clean
    total = len(noised.t)
    count = total // noised.views
    rows = [number * count + image for number in range(noised.views) for image in images]
    own = Clean(
        streams=take(clean.streams, images, count),
        images=take(clean.images, images, count),
        labels=take(clean.labels, images, count),
        captions=take(clean.captions, images, count),
        levels=take(clean.levels, images, count),
        features=take(clean.features, images, count),
        batch=take(clean.batch, images, count),
    )
    less = replace(
        noised,
        x=take(noised.x, rows, total),
        t=noised.t[rows],
        data=take(noised.data, rows, total),
        noise=take(noised.noise, rows, total),
        groups=take(noised.groups, rows, total),
    )
    cond = replace(
        view.cond,
        value=take(view.cond.value, rows, total),
        dropped=take(view.cond.dropped, rows, total),
    )
    plan = view.plan._replace(groups=take(view.plan.groups, rows, total))
    out = net.backbone(less.x, less.t, cond.value, taps=net.taps, plan=plan)
    part = replace(view, clean=own, noised=less, cond=cond, out=out, plan=plan)
    return part, take(features, rows, total)


@torch.no_grad()
def refuse_coupled(
    net: AlignedDenoiser, target: Target, view: TargetView, features: Mapping[str, Features]
) -> None:
    """Check that the loss of a batch is the mean of the losses of its images.

    Raises:
        UserError: If it is not: then single images have no gradient.
    """
    count = min(CHECKED, len(view.noised.t) // view.noised.views)
    try:
        few = part_of_batch(net, view, features, range(count))
        whole = float(alignment_loss(net, target, *few)[0])
        alone = []
        for image in range(count):
            part = part_of_batch(net, view, features, [image])
            alone.append(float(alignment_loss(net, target, *part)[0]))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"alignment {target.alignment!r} cannot be computed for one image by itself "
            f"({reason}), so single images have no gradient and G is not defined."
        ) from error
    mean = sum(alone) / count
    if abs(whole - mean) > TOLERANCE * max(abs(whole), abs(mean), SMALLEST):
        raise UserError(
            f"alignment {target.alignment!r} couples the images of a batch: its loss of {count} "
            f"images is {whole:.6g}, the mean over the same images one by one {mean:.6g}. Single "
            "images have no gradient, so G is not defined for it."
        )


# ---- per-sample gradients -------------------------------------------------------------------


class Call(NamedTuple):
    """One call of a linear layer: its input and output."""

    given: Tensor
    output: Tensor


@contextmanager
def recorded_calls(modules: Mapping[str, nn.Linear]) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of linear layers, {name: calls}, which fill as the layers run."""
    calls: dict[str, list[Call]] = {name: [] for name in modules}
    hooks = []
    for name, module in modules.items():

        def note(
            module: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> None:
            calls[name].append(Call(given[0].detach(), output))

        hooks.append(module.register_forward_hook(note))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def linear_layers(
    backbone: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Linear] | None:
    """Return the linear layers that hold the parameters; None if other layers hold some."""
    wanted = set(parameters)
    found: dict[str, nn.Linear] = {}
    for name, module in backbone.named_modules():
        own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)} & wanted
        if own and type(module) is not nn.Linear:
            return None
        if own and isinstance(module, nn.Linear):
            found[name] = module
            wanted -= own
    return None if wanted else found


def per_image(x: Tensor, views: int) -> Tensor:
    """Arrange [views * B, ..., C] as [B, M, C], all vectors of one image together."""
    rows = x.unflatten(0, (views, -1)).transpose(0, 1)
    return rows.flatten(1, -2) if rows.ndim > 3 else rows


def weight_norms(given: Tensor, grad: Tensor) -> Tensor:
    """Return |sum_m grad_im given_im^T|^2 for each image, [B] float64.

    Args:
        given: Inputs [B, M, in].
        grad: Gradients of the outputs [B, M, out].
    """
    images, vectors, wide = given.shape
    gram = vectors * (wide + grad.shape[-1]) <= wide * grad.shape[-1]
    held = 2 * vectors**2 if gram else wide * grad.shape[-1]
    step = max(1, GRAM // held)
    norms = []
    for start in range(0, images, step):
        a, d = given[start : start + step], grad[start : start + step]
        if gram:
            products = (a @ a.mT).double() * (d @ d.mT).double()
            norms.append(products.sum((1, 2)))
        else:
            norms.append((d.mT @ a).double().square().sum((1, 2)))
    return torch.cat(norms)


class Gradients(NamedTuple):
    """Gradients of a batch of B images.

    Attributes:
        mean: The mean gradient, one tensor for each parameter.
        squares: |g_i|^2, [B] float64.
    """

    mean: list[Tensor]
    squares: Tensor


def ghost_gradients(
    loss: Tensor,
    calls: Mapping[str, list[Call]],
    linears: Mapping[str, nn.Linear],
    parameters: Mapping[str, nn.Parameter],
    *,
    images: int,
    views: int,
) -> Gradients:
    """Return the gradients of a batch from one backward pass.

    Args:
        loss: Mean of the images' losses.
        calls: The one call of each linear layer.
        linears: {name: linear layer}.
        parameters: {name: parameter} of these layers.
        images: Number of images B.
        views: Noisings of each image.
    """
    outputs = [calls[name][0].output for name in linears]
    wanted = [*outputs, *parameters.values()]
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    squares = torch.zeros(images, dtype=torch.float64, device=loss.device)
    for (name, layer), grad in zip(linears.items(), found, strict=False):
        if grad is None:
            continue
        given = per_image(calls[name][0].given, views)
        grad = per_image(grad, views) * images
        if f"{name}.weight" in parameters:
            squares += weight_norms(given, grad)
        if layer.bias is not None and f"{name}.bias" in parameters:
            squares += grad.sum(1).double().square().sum(-1)
    mean = filled(found[len(outputs) :], parameters)
    return Gradients(mean, squares)


def filled(grads: Sequence[Tensor | None], parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return gradients, zero where a parameter has none."""
    pairs = zip(grads, parameters.values(), strict=True)
    return [torch.zeros_like(p) if grad is None else grad.detach() for grad, p in pairs]


def looped_gradients(
    net: AlignedDenoiser,
    target: Target,
    view: TargetView,
    features: Mapping[str, Features],
    parameters: Mapping[str, nn.Parameter],
) -> Gradients:
    """Return the gradients of a batch from a backward pass for each image."""
    images = len(view.noised.t) // view.noised.views
    total = [torch.zeros_like(parameter) for parameter in parameters.values()]
    squares = []
    for image in range(images):
        part = part_of_batch(net, view, features, [image])
        loss, _ = alignment_loss(net, target, *part)
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        own = filled(grads, parameters)
        squares.append(sum(grad.double().square().sum() for grad in own))
        total = [a + b for a, b in zip(total, own, strict=True)]
    stacked = torch.stack([torch.as_tensor(value) for value in squares])
    return Gradients([grad / images for grad in total], stacked)


# ---- the measurement ------------------------------------------------------------------------


class Curve(NamedTuple):
    """G of one target over t.

    Attributes:
        target: What was differentiated.
        moments: One for each bin of t.
        parameters: Number of parameters.
        method: "ghost norms" or "one image at a time".
        weighted: Whether the schedule's weight was above 0.
    """

    target: Target
    moments: list[Moments]
    parameters: int
    method: str
    weighted: bool


def measure(
    run: Run,
    *,
    images: int = 64,
    batch: int = 16,
    bins: int = 10,
    seed: int = 0,
    params: str = BLOCK,
    levels: bool = False,
) -> list[Curve]:
    """Measure G of every alignment of a run, over equal bins of t.

    Every bin sees the same images; times are uniform in the bin, times and noise drawn anew.

    Args:
        run: The run.
        images: B, at least 2.
        batch: Images at once, which bounds the memory and does not change G.
        bins: Number of bins of t in [0, 1].
        seed: Which images, times and noise.
        params: See `shared_parameters`.
        levels: Whether to measure each level of a routed alignment by itself as well.

    Raises:
        UserError: If the run has no alignment, one couples the images of a batch, or its flow gives
            each token a time.
    """
    net = run.net
    if not net.alignments:
        raise UserError(
            f"{run.name} has no alignment; name a run that has some by --heads, whose router, "
            "projector and prior are then used on this backbone."
        )
    targets = targets_of(net, levels=levels)
    chosen = {
        name: shared_parameters(net, alignment, params)
        for name, alignment in alignments_of(net).items()
    }
    shared: dict[str, nn.Parameter] = {}
    for parameters in chosen.values():
        shared |= parameters
    net.requires_grad_(False)
    for parameter in shared.values():
        parameter.requires_grad_(True)
    linears = {name: linear_layers(net.backbone, own) for name, own in chosen.items()}
    found: dict[int, list[Moments]] = {number: [] for number in range(len(targets))}
    methods = ["" for _ in targets]
    weighted = [True for _ in targets]
    for number in range(bins):
        sums: list[list[Tensor] | None] = [None for _ in targets]
        squares = [0.0 for _ in targets]
        low, high = number / bins, (number + 1) / bins
        for part, item in enumerate(batches(run.dataset, images, batch=batch, seed=seed)):
            rng = generator(run.device, seed, number, part)
            watched = {n: m for layers in linears.values() for n, m in (layers or {}).items()}
            with recorded_calls(watched) as calls:
                view, features = noised_batch(net, item, rng, low, high, run.progress)
                recorded = {name: list(own) for name, own in calls.items()}
            count = len(view.noised.t) // view.noised.views
            for index, target in enumerate(targets):
                if number == part == 0:
                    refuse_coupled(net, target, view, features)
                own = chosen[target.alignment]
                layers = linears[target.alignment]
                loss, weighted[index] = alignment_loss(net, target, view, features)
                if not loss.requires_grad:
                    raise UserError(
                        f"alignment {target.alignment!r} has no gradient with respect to "
                        f"--params {params}; it taps block(s) {blocks_text(net, target)}."
                    )
                if layers is not None and called_once(recorded, layers, len(view.noised.t)):
                    methods[index] = "ghost norms"
                    grads = ghost_gradients(
                        loss, recorded, layers, own, images=count, views=view.noised.views
                    )
                else:
                    methods[index] = "one image at a time"
                    grads = looped_gradients(net, target, view, features, own)
                squares[index] += float(grads.squares.sum())
                share = [grad.double() * count for grad in grads.mean]
                before = sums[index]
                if before is not None:
                    share = [a + b for a, b in zip(before, share, strict=True)]
                sums[index] = share
        for index, total in enumerate(sums):
            assert total is not None
            length = sum(float((part / images).square().sum()) for part in total)
            found[index].append(Moments(images, length, squares[index]))
    curves = []
    for index, target in enumerate(targets):
        count = sum(p.numel() for p in chosen[target.alignment].values())
        curves.append(Curve(target, found[index], count, methods[index], weighted[index]))
    return curves


def noised_batch(
    net: AlignedDenoiser,
    item: Mapping[str, Any],
    rng: torch.Generator,
    low: float,
    high: float,
    progress: Progress,
) -> tuple[TargetView, dict[str, Features]]:
    """Encode a batch, noise it at times in [low, high), and compute taps and features.

    Raises:
        UserError: If the flow gives each token a time.
    """
    clean = net.parts.encode(item, rng)
    count = net.flow.views * len(clean.streams["image"])
    share = torch.rand(count, generator=rng, device=net.parts.device)
    view = observe(net, clean, low + (high - low) * share, rng, progress=progress)
    if view.noised.t.ndim == 2:
        raise UserError(
            f"{type(net.flow).__name__} gives each token of an image its own time; G over t "
            "is not defined for it."
        )
    return view, net.parts.features(view)


def called_once(
    calls: Mapping[str, list[Call]], layers: Mapping[str, nn.Linear], rows: int
) -> bool:
    """Whether each layer was called once, with one row for each sample."""
    return all(len(calls[name]) == 1 and len(calls[name][0].given) == rows for name in layers)


def blocks_text(net: AlignedDenoiser, target: Target) -> str:
    """List the blocks that an alignment taps."""
    alignment = alignments_of(net)[target.alignment]
    return ", ".join(str(tap.block) for tap in sorted(alignment.taps))


# ---- what is written ------------------------------------------------------------------------


def rows_of(run: Run, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return the figures, one row for each target and bin."""
    rows = []
    for curve in curves:
        bins = len(curve.moments)
        for number, moments in enumerate(curve.moments):
            rows.append(
                {
                    "run": run.name,
                    "alignment": curve.target.alignment,
                    "level": curve.target.level,
                    "t_low": number / bins,
                    "t_high": (number + 1) / bins,
                    "gsnr": moments.gsnr,
                    "gsnr_times_b": moments.gsnr * moments.images,
                    "gsnr_unbiased": moments.gsnr - 1 / moments.images,
                    "mean_gradient": moments.squared_mean**0.5,
                    "gradient_std": moments.variance**0.5,
                    "images": moments.images,
                }
            )
    return rows


def phases(curve: Curve) -> dict[str, float]:
    """Return the means of G over the bins with t >= 0.5, over the others, and over all."""
    bins = len(curve.moments)
    values = [moments.gsnr for moments in curve.moments]
    middles = [(number + 0.5) / bins for number in range(bins)]
    pairs = list(zip(middles, values, strict=True))
    kinds = {
        "high_noise": [value for t, value in pairs if t >= HIGH_NOISE],
        "low_noise": [value for t, value in pairs if t < HIGH_NOISE],
        "mean": values,
    }
    return {kind: sum(some) / len(some) for kind, some in kinds.items() if some}


def finding(measured: Sequence[tuple[Run, Sequence[Curve]]], params: str) -> Finding:
    """Return the picture and figures of runs.

    Args:
        measured: The runs with their curves.
        params: Which parameters were chosen.
    """
    rows: list[dict[str, Any]] = []
    summary = []
    notes = []
    for run, curves in measured:
        rows += rows_of(run, curves)
        for curve in curves:
            count = curve.moments[0].images
            means = phases(curve)
            summary.append(
                {
                    "run": run.name,
                    "alignment": curve.target.alignment,
                    "level": curve.target.level,
                    "parameters": curve.parameters,
                    "method": curve.method,
                    "gsnr": means,
                    "gsnr_times_b": {kind: value * count for kind, value in means.items()},
                }
            )
            listed = [
                f"{kind.replace('_', ' ')} {value:.3g} (times B {value * count:.3g})"
                for kind, value in means.items()
            ]
            target = f"{curve.target.alignment} {curve.target.level}"
            notes.append(f"{run.name} {target}: G {', '.join(listed)}")
            if not curve.weighted:
                notes.append(
                    f"{run.name}: the weight of {curve.target.alignment} is 0 at this iteration; "
                    "its terms were all weighted by 1."
                )
    images = measured[0][1][0].moments[0].images
    notes.append(
        f"Gradients without a common direction give G of about 1/B = {1 / images:.3g}, that is "
        "G B of about 1. Compare orderings: the paper's scale is not known."
    )
    shown = [len({row[key] for row in rows}) > 1 for key in ("run", "alignment")] + [True]
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["run"], row["alignment"], row["level"]), []).append(row)
    with styled():
        title = f"Gradient signal-to-noise ratio, parameters: {params}, B = {images}"
        figure = new_figure(8.6, 4.2, title)
        axis = figure.subplots()
        for number, (key, own) in enumerate(lines.items()):
            middle = [(row["t_low"] + row["t_high"]) / 2 for row in own]
            label = " ".join(part for part, show in zip(key, shown, strict=True) if show)
            values = [row["gsnr_times_b"] for row in own]
            width = 2.4 if key[2] == "routed" else 1.2
            style = look(number)
            axis.plot(middle, values, label=label, marker="o", ms=3, lw=width, **style)
        axis.axhline(1, color="0.5", lw=1, ls=(0, (1, 2)))
        axis.text(0.005, 1, " no common direction", fontsize=7, va="bottom", color="0.35")
        axis.set(xlabel=TIME, ylabel="G times B", xlim=(0, 1), yscale="log")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Finding("gsnr", rows, figure, {"params": params, "curves": summary}, notes)
