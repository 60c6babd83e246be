"""Conformance checks for pair losses, flow losses and regularisers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import FLOW_LOSSES, FLOWS, PAIR_LOSSES, REGULARISERS, build
from ..registry.contracts import (
    BackboneOutput,
    Clean,
    Flow,
    FlowLoss,
    Geometry,
    PairLoss,
    Regulariser,
    Streams,
    TargetView,
    Tokens,
)
from ..registry.values import Condition, repeat
from .common import assert_finite, assert_half_precision, random_tensor, toy_geometry


def toy_view(
    flow: Flow,
    pred: Streams | None = None,
    *,
    batch: int = 4,
    error: float = 0.1,
) -> TargetView:
    """Make a view of a step with random data, for trying flow losses.

    Args:
        flow: The flow that noises the data.
        pred: The network's output; by default the target plus noise of scale `error`, followed by
            zeros if the geometry has more output channels than the data.
        batch: Number of images.
        error: Scale of the error of the default prediction.
    """
    geometry = flow.geometry
    data: Streams = {}
    for seed, (name, shape) in enumerate(geometry.streams.items()):
        data[name] = random_tensor(batch, *shape, seed=seed)
    noised = flow.sample(data, torch.Generator().manual_seed(1))
    count = len(noised.t)
    if pred is None:
        pred = {}
        for name, target in noised.target.items():
            normal = random_tensor(*target.shape, seed=2)
            pred[name] = target + error * normal
        more = geometry.out_channels - geometry.latent_channels
        variance = torch.zeros(count, more, *geometry.streams["image"][1:])
        pred["image"] = torch.cat([pred["image"], variance], 1)
    labels = torch.arange(batch) % (geometry.num_classes or batch)
    dropped = torch.arange(count) % 3 == 0
    cond = Condition(repeat(labels, flow.views), dropped)
    out = BackboneOutput(pred, {}, geometry.prefix, geometry.grid)
    clean = Clean(data, labels=labels)
    rng = torch.Generator().manual_seed(3)
    return TargetView(clean, noised, cond, out, rng=rng)


def check_flow_loss(
    loss: Mapping[str, Any] | FlowLoss,
    *,
    flow: Mapping[str, Any] | Flow | None = None,
    geometry: Geometry | None = None,
) -> None:
    """Check a flow loss: its terms, their gradients, and that a worse prediction costs more.

    Args:
        loss: A config of a registered flow loss, or a loss.
        flow: The flow; the default `Flow` if not given.
        geometry: Sizes; a toy geometry by default.

    Raises:
        AssertionError: If the loss breaks the contract.
    """
    geometry = geometry or toy_geometry()
    flow = dict(type="Flow") if flow is None else flow
    noising: Flow = build(FLOWS, flow, geometry=geometry)
    built: FlowLoss = build(FLOW_LOSSES, loss, geometry=geometry, flow=noising)
    view = toy_view(noising)
    for value in view.out.pred.values():
        value.requires_grad_()
    losses = built(view)
    names = [term.name for term in losses.terms]
    assert names and names[0] == "flow", f"the first term must be named 'flow', got {names}"
    assert len(set(names)) == len(names), f"the names of the terms are not unique: {names}"
    for term in losses.terms:
        assert term.value.ndim == 0, f"the term {term.name!r} is not a 0-d tensor"
        assert term.value.dtype == torch.float32, f"the term {term.name!r} is not float32"
        assert_finite(f"the term {term.name!r}", term.value)
    losses.total.backward()
    for name, value in view.out.pred.items():
        assert value.grad is not None, f"no gradient reaches the prediction of {name!r}"
        assert_finite(f"the gradient of the prediction of {name!r}", value.grad)
        assert value.grad.abs().sum() > 0, f"no gradient reaches the prediction of {name!r}"
    again = built(toy_view(noising))
    assert torch.equal(losses.total, again.total), "the loss must draw from view.rng alone"
    worse = built(toy_view(noising, error=1.0))
    assert worse.terms[0].value > losses.terms[0].value, "a larger error must cost more"


def _shape(
    kind: str,
    batch: int,
    tokens: int,
    dim: int,
) -> tuple[int, ...]:
    """Return the shape of the tensors that a pair loss of this kind compares."""
    if kind == "attention":
        return (batch, dim, tokens, tokens)
    return (batch, tokens, dim)


def _value(
    loss: PairLoss,
    pred: Tensor,
    target: Tensor,
    *,
    own: bool = True,
) -> Tensor:
    """Return the sum of a pair loss's items; `own` includes those that no weight scales."""
    result = loss(pred, target)
    parts = result if isinstance(result, Mapping) else {"": result}
    listed = tuple(result) if isinstance(result, Mapping) else ()
    assert listed == loss.items, f"`items` says {loss.items}, but {listed} are returned"
    chosen = []
    for name, part in parts.items():
        assert part.ndim == 0, "a pair loss returns 0-d tensors"
        assert part.dtype == torch.float32, f"a pair loss is float32, got {part.dtype}"
        if own or name not in loss.unweighted:
            chosen.append(part)
    return torch.stack(chosen).sum()


def check_pair_loss(
    loss: Mapping[str, Any] | PairLoss,
    *,
    dim: int = 16,
    batch: int = 2,
    tokens: int = 9,
    kind: str = "tokens",
) -> None:
    """Check a pair loss: finite float32 values and gradients, its minimum, and token weights.

    It must be least at pred = target among a few tries (a critic's own objective apart), and finite
    for zeros, tiny vectors and half precision.

    Args:
        loss: A config of a registered pair loss, or a loss.
        dim: Width of the tokens, or number of heads.
        batch: Number of images.
        tokens: Number of tokens, a square.
        kind: What it compares: "tokens" [B, N, dim] or "attention" logits [B, dim, N, N].

    Raises:
        AssertionError: If the loss breaks the contract.
    """
    built: PairLoss = build(PAIR_LOSSES, loss, dim=dim)
    shape = _shape(kind, batch, tokens, dim)
    target = random_tensor(*shape, seed=1)
    unrelated = random_tensor(*shape, seed=2)
    same = _value(built, target.clone(), target, own=False).item()
    other = _value(built, unrelated, target, own=False).item()
    assert same <= other, f"pred = target costs {same:.4g}, an unrelated pred {other:.4g}"
    for scale in (1.0, 1e-12, 0.0):
        pred = nn.Parameter(scale * random_tensor(*shape, seed=3))
        result = _value(built, pred, target)
        assert_finite(f"the loss of vectors of scale {scale:g}", result)
        result.backward()
        assert pred.grad is not None, "no gradient reaches pred"
        assert_finite(f"the gradient at vectors of scale {scale:g}", pred.grad)
    half = random_tensor(*shape, seed=4).half()
    owner = type(built).__name__
    assert_half_precision(owner, lambda: _value(built, half, target.half()))
    _check_token_weights(built, half.float(), target, torch.ones(batch, tokens))


def _check_token_weights(
    loss: PairLoss,
    pred: Tensor,
    target: Tensor,
    ones: Tensor,
) -> None:
    """Check that a loss refuses token weights, or takes ones for no weights."""
    bare = loss(pred, target)
    try:
        weighted = loss(pred, target, ones)
    except ValueError:
        return
    assert isinstance(bare, Tensor) and isinstance(weighted, Tensor), (
        "a loss of several items has no token weights; it must raise ValueError"
    )
    equal = torch.allclose(weighted, bare, rtol=1e-5, atol=1e-6)
    assert equal, "token weights of 1 must leave the value unchanged"
    half = torch.zeros_like(ones)
    half[:, ::2] = ones.numel() / half[:, ::2].numel()
    changed = loss(pred, target, half)
    assert not torch.allclose(changed, bare), "token weights have no effect"


def check_regulariser(
    regulariser: Mapping[str, Any] | Regulariser,
    *,
    dim: int = 16,
    batch: int = 4,
    grid: tuple[int, int] = (3, 3),
) -> None:
    """Check a regulariser: a finite float32 scalar with finite gradients, also for equal samples.

    Args:
        regulariser: A config of a registered regulariser, or an object.
        dim: Width of the tokens.
        batch: Number of samples.
        grid: Token grid.

    Raises:
        AssertionError: If it breaks the contract.
    """
    built: Regulariser = build(REGULARISERS, regulariser, dim=dim)
    shape = (batch, 1 + grid[0] * grid[1], dim)
    for scale in (1.0, 1e-12, 0.0):
        tokens = nn.Parameter(scale * random_tensor(*shape))
        value = built(Tokens(tokens, 1, grid))
        assert value.ndim == 0, f"a regulariser is a 0-d tensor, got {tuple(value.shape)}"
        assert value.dtype == torch.float32, f"a regulariser is float32, got {value.dtype}"
        assert_finite(f"the value at tokens of scale {scale:g}", value)
        value.backward()
        assert tokens.grad is not None, "no gradient reaches the tokens"
        assert_finite(f"the gradient at tokens of scale {scale:g}", tokens.grad)
        if scale == 1.0:
            assert tokens.grad.abs().sum() > 0, "no gradient reaches the tokens"
    half = Tokens(random_tensor(*shape).half(), 1, grid)
    assert_half_precision(type(built).__name__, lambda: built(half))
