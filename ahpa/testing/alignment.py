"""Conformance checks for projectors, schedules and alignments."""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import ALIGNMENTS, FLOWS, PROJECTORS, SCHEDULES, build
from ..registry.contracts import (
    Alignment,
    BackboneOutput,
    Clean,
    Condition,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    Progress,
    Projector,
    Schedule,
    Tap,
    TargetView,
    Tokens,
)
from ..registry.values import TAP_KINDS, Term
from .common import assert_finite, assert_half_precision, random_tensor, toy_geometry

Levels = Mapping[str, LevelSpec]


def check_projector(
    projector: Projector | Mapping[str, Any],
    *,
    dim: int = 8,
) -> None:
    """Check that a projector keeps its contract.

    It maps grid tokens [B, N, dim] to [B, N, 12]; prefix tokens are either mapped too or refused
    with a ValueError; gradients reach the tokens and every parameter; half precision stays finite.

    Args:
        projector: A config with a registered type, or a projector of `dim` to 12.
        dim: Width of the tokens.

    Raises:
        AssertionError: If the projector breaks its contract.
    """
    out_dim = 12
    if isinstance(projector, Mapping):
        projector = build(PROJECTORS, projector, dim=dim, out_dim=out_dim)
    assert isinstance(projector, Projector), f"{type(projector).__name__} is not a Projector"

    x = random_tensor(2, 16, dim).requires_grad_()
    out = projector(Tokens(x, 0, (4, 4)))
    assert tuple(out.shape) == (2, 16, out_dim), f"[2, 16, {dim}] became {tuple(out.shape)}"
    assert out.requires_grad, "the projection carries no gradient"
    (out * random_tensor(*out.shape, seed=1)).sum().backward()
    assert _is_reached(x), "no gradient reaches the tokens"
    _assert_trained(projector)

    with_prefix = Tokens(random_tensor(2, 17, dim), 1, (4, 4))
    try:
        shape = tuple(projector(with_prefix).shape)
    except ValueError:
        shape = (2, 17, out_dim)
    assert shape == (2, 17, out_dim), f"a prefix token is lost: [2, 17, {dim}] became {shape}"
    tokens = Tokens(x.detach(), 0, (4, 4))
    assert_half_precision(type(projector).__name__, lambda: projector(tokens))


def check_schedule(
    schedule: Schedule | Mapping[str, Any],
    *,
    max_iters: int = 40,
) -> None:
    """Check that a schedule keeps its contract.

    Its weights are finite, not negative and without gradient, at every step of a run; asking twice
    gives the same weight; it trains nothing; a copy that is restored from a state dict in the
    middle of the run goes on with exactly the same weights; once it has ended, its weight stays 0.

    Args:
        schedule: A config with a registered type, or a schedule.
        max_iters: Length of the run.

    Raises:
        AssertionError: If the schedule breaks its contract.
    """
    if isinstance(schedule, Mapping):
        schedule = build(SCHEDULES, schedule)
    assert isinstance(schedule, Schedule), f"{type(schedule).__name__} is not a Schedule"
    trained = [name for name, _ in schedule.named_parameters()]
    assert not trained, f"a schedule trains nothing, but has parameters: {trained}"
    fresh = copy.deepcopy(schedule)

    middle = max_iters // 2
    for _ in _weights(schedule, 0, middle, max_iters):
        pass
    fresh.load_state_dict(schedule.state_dict())
    rest = list(_weights(schedule, middle, max_iters, max_iters))
    resumed = list(_weights(fresh, middle, max_iters, max_iters))
    assert rest == resumed, "it does not resume exactly: its state must be kept in buffers"


def _weights(
    schedule: Schedule,
    start: int,
    end: int,
    max_iters: int,
) -> Iterator[float]:
    """Run a schedule over some steps with values that fall and level out."""
    ended = False
    for iteration in range(start, end):
        progress = Progress(iteration, max_iters)
        weight = schedule(progress)
        again = schedule(progress)
        ended = ended or schedule.ended(progress)
        assert not ended or float(weight) == 0, f"it has ended, but its weight is {float(weight)}"
        if isinstance(weight, Tensor):
            assert weight.ndim == 0, f"the weight has shape {tuple(weight.shape)}, expected 0-d"
            assert not weight.requires_grad, "the weight carries a gradient"
        assert float(weight) == float(again), "the weight changes when it is asked for twice"
        assert math.isfinite(weight), f"the weight is {float(weight)}"
        assert weight >= 0, f"the weight is {float(weight)}"
        value = torch.tensor(1 + math.exp(-iteration))
        schedule.observe(Losses((Term("main/cosine", value),)), progress)
        yield float(weight)


def toy_prior(geometry: Geometry) -> dict[str, LevelSpec]:
    """List the levels of a toy prior: 15 maps, and 4 levels of attention logits.

    Args:
        geometry: Sizes of the model.
    """
    heads = geometry.num_heads or 1
    levels = {f"level{index}": LevelSpec(8, 8) for index in range(15)}
    for index in range(4):
        levels[f"attention{index}"] = LevelSpec(heads, geometry.token_stride, attention=True)
    return levels


def toy_features(levels: Levels, geometry: Geometry, batch: int) -> Features:
    """Draw features of the declared shapes.

    Args:
        levels: Levels of a prior.
        geometry: Sizes of the model.
        batch: Batch size, views included.
    """
    features = {}
    count = geometry.grid[0] * geometry.grid[1]
    for seed, (name, level) in enumerate(levels.items()):
        shape: tuple[int, ...] = (batch, level.channels)
        if level.attention:
            shape = (batch, level.channels, count, count)
        elif level.is_map:
            side = geometry.resolution // level.stride
            shape = (batch, level.channels, side, side)
        features[name] = random_tensor(*shape, seed=seed)
    return features


def toy_view(
    geometry: Geometry,
    taps: Collection[Tap],
    *,
    flow: Flow,
    batch: int = 2,
) -> TargetView:
    """Make a view of random values in which the given taps require gradients.

    Args:
        geometry: Sizes of the model.
        taps: What is tapped.
        flow: The flow that noises the batch.
        batch: Batch size without views.
    """
    clean_streams = {}
    for name, shape in geometry.streams.items():
        clean_streams[name] = random_tensor(batch, *shape, seed=50)
    rng = torch.Generator().manual_seed(0)
    noised = flow.sample(clean_streams, rng)
    rows = batch * noised.views
    height, width = geometry.grid
    count = geometry.prefix + height * width
    heads = geometry.num_heads or 1
    per_head = (rows, heads, count, geometry.width // heads)
    shapes = {
        "tokens": (rows, count, geometry.width),
        "attention": (rows, heads, count, count),
        "keys": per_head,
        "values": per_head,
    }
    values = {}
    for tap in taps:
        shape = shapes[tap.kind]
        value = random_tensor(*shape, seed=60 + tap.block)
        values[tap] = value.requires_grad_()
    out = BackboneOutput(noised.x, values, geometry.prefix, geometry.grid)
    labels = torch.zeros(rows, dtype=torch.long)
    clean = Clean(streams=clean_streams, labels=labels[:batch])
    return TargetView(
        clean=clean,
        noised=noised,
        cond=Condition(labels),
        out=out,
        rng=rng,
    )


def check_alignment(
    alignment: Alignment | Mapping[str, Any],
    *,
    geometry: Geometry | None = None,
    priors: Mapping[str, Levels] | None = None,
    views: int = 1,
) -> None:
    """Check that an alignment keeps its contract.

    It declares taps and levels that exist; its terms are unique, belong to it, and are finite 0-d
    float32 values with weights that carry no gradient; diagnostics come when asked for only, and
    without gradient; gradients reach the taps and every trainable parameter; half precision stays
    finite; once it has ended, all terms have the weight 0; `summary` is one line and `probes` run
    on the meta device.

    Args:
        alignment: A config with a registered type, or an alignment called "main" that is built for
            the other arguments.
        geometry: Sizes of the model; `toy_geometry()` by default.
        priors: Levels of every prior; {"prior": toy_prior(geometry)} by default.
        views: Views of the flow.

    Raises:
        AssertionError: If the alignment breaks its contract.
    """
    geometry = geometry or toy_geometry()
    priors = priors or {"prior": toy_prior(geometry)}
    flow = build(FLOWS, {"type": "Flow", "views": views}, geometry=geometry)
    if isinstance(alignment, Mapping):
        alignment = build(
            ALIGNMENTS,
            alignment,
            where="model.alignments.main",
            name="main",
            geometry=geometry,
            flow=flow,
            priors=priors,
        )
    assert isinstance(alignment, Alignment), f"{type(alignment).__name__} is not an Alignment"
    _check_declarations(alignment, geometry, priors)

    view = toy_view(geometry, alignment.taps, flow=flow)
    rows = len(view.noised.t)
    features = {}
    for prior, names in alignment.reads.items():
        read = {name: priors[prior][name] for name in names}
        features[prior] = toy_features(read, geometry, rows)

    plain = alignment(view, features, Progress(0, 10))
    shown = alignment(view, features, Progress(1, 10, diagnose=True))
    assert not plain.diagnostics, "diagnostics were computed although progress.diagnose is False"
    _check_losses(alignment, plain)
    _check_losses(alignment, shown)

    alignment.zero_grad(set_to_none=True)
    assert plain.total.requires_grad, "the terms carry no gradient"
    plain.total.backward()
    for tap, value in view.out.taps.items():
        assert _is_reached(value), f"no gradient reaches {tap}"
    _assert_trained(alignment)
    alignment.zero_grad(set_to_none=True)

    def values() -> dict[str, Tensor]:
        losses = alignment(view, features, Progress(2, 10, diagnose=True))
        return losses.scalars()

    assert_half_precision(type(alignment).__name__, values)
    _check_end(alignment, view, features)
    _check_reports(alignment)


def _check_declarations(
    alignment: Alignment, geometry: Geometry, priors: Mapping[str, Levels]
) -> None:
    for tap in alignment.taps:
        assert isinstance(tap, Tap), f"{tap!r} is not a Tap"
        assert tap.kind in TAP_KINDS, f"{tap} has an unknown kind"
        inside = 1 <= tap.block <= geometry.depth
        assert inside, f"{tap} is not a tap of blocks 1..{geometry.depth}"
    assert alignment.taps, "an alignment reads at least one tap"
    for prior, names in alignment.reads.items():
        assert prior in priors, f"reads names the prior {prior!r}, which does not exist"
        unknown = set(names) - set(priors[prior])
        assert not unknown, f"reads names levels that {prior!r} does not have: {sorted(unknown)}"


def _check_losses(alignment: Alignment, losses: Losses) -> None:
    names = [term.name for term in losses.terms]
    assert names, "an alignment has at least one term"
    assert len(set(names)) == len(names), f"two terms have the same name: {names}"
    for term in losses.terms:
        start = f"{alignment.name}/"
        assert term.name.startswith(start), f"term {term.name!r} does not begin with {start!r}"
        value = term.value
        assert value.ndim == 0, f"term {term.name!r} is not a 0-d float32 value"
        assert value.dtype == torch.float32, f"term {term.name!r} is not a 0-d float32 value"
        assert_finite(f"term {term.name!r}", value)
        if isinstance(term.weight, Tensor):
            assert term.weight.ndim == 0, f"the weight of {term.name!r} is not 0-d"
            assert not term.weight.requires_grad, f"the weight of {term.name!r} carries a gradient"
        assert math.isfinite(term.weight), f"the weight of {term.name!r} is not finite"
    for name, value in losses.diagnostics.items():
        assert name not in names, f"a diagnostic and a term have the same name {name!r}"
        assert value.ndim == 0, f"the diagnostic {name!r} is not 0-d"
        assert not value.requires_grad, f"the diagnostic {name!r} carries a gradient"


def _check_end(
    alignment: Alignment, view: TargetView, features: Mapping[str, Mapping[str, Tensor]]
) -> None:
    last = Progress(9, 10)
    if alignment.ended(last):
        for term in alignment(view, features, last).terms:
            assert float(term.weight) == 0, f"it has ended, but {term.name!r} has a weight"


def _check_reports(alignment: Alignment) -> None:
    summary = alignment.summary()
    assert summary and "\n" not in summary, f"the summary is not one line: {summary!r}"
    for part, call in alignment.probes().items():
        value = call()
        assert isinstance(value, Tensor), f"the probe {part!r} does not return a tensor"
        assert value.is_meta, f"the probe {part!r} does not run on the meta device"


def _is_reached(value: Tensor) -> bool:
    """Whether a gradient that is not zero has reached a tensor."""
    return value.grad is not None and bool(value.grad.any())


def _assert_trained(module: nn.Module) -> None:
    """Raise AssertionError if a trainable parameter has no gradient."""
    bare = []
    for name, value in module.named_parameters():
        if value.requires_grad and value.grad is None:
            bare.append(name)
    assert not bare, f"no gradient reaches {bare}"
