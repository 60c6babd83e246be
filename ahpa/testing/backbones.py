"""Conformance check for backbones."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import BACKBONES, build
from ..registry.contracts import Backbone, BackboneOutput, Streams, Tap
from ..registry.values import TAP_KINDS
from .common import assert_finite, assert_half_precision, random_tensor


class Inputs(NamedTuple):
    """The arguments of a forward pass."""

    x: Streams
    t: Tensor
    cond: Any


def check_backbone(
    backbone: Mapping[str, Any] | Backbone,
    *,
    input_size: int = 8,
    in_channels: int = 4,
    batch: int = 2,
) -> None:
    """Check that a backbone keeps the contract `Backbone`.

    It declares its sizes; predicts each stream in its shape, in float32; gives the requested taps
    and no others without changing its prediction; stops where it is told to; handles a time per
    token or refuses it; passes a gradient to every parameter; runs in half precision.

    Args:
        backbone: A config, or a built backbone; the check works on a copy.
        input_size: Side of the latent.
        in_channels: Channels of the latent.
        batch: Number of samples.

    Raises:
        AssertionError: If the contract is broken; says how.
    """
    built = build(BACKBONES, backbone, input_size=input_size, in_channels=in_channels)
    model = copy.deepcopy(built).eval()
    with torch.no_grad():  # training starts from zeros, which would hide mistakes
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.02 * random_tensor(*parameter.shape, seed=seed))
    inputs = Inputs(
        x={name: random_tensor(batch, *shape) for name, shape in model.streams.items()},
        t=torch.linspace(0.2, 0.8, batch),
        cond=model.blank_cond(batch, "cpu"),
    )

    _check_declarations(model)
    bare = model(*inputs)
    _check_prediction(model, inputs, bare)
    _check_taps(model, inputs, bare)
    for wrong in (Tap(model.depth + 1), Tap(0), Tap(1, "nothing")):
        _check_refused(model, inputs, wrong)
    _check_time_per_token(model, inputs, bare)
    _check_training(model, inputs)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert_half_precision(type(model).__name__, lambda: model(*inputs).pred)


def _assert_shape(what: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    given = tuple(value.shape)
    assert given == wanted, f"{what}: must be {wanted}, is {given}"


def _check_declarations(model: Backbone) -> None:
    assert isinstance(model, Backbone), "a backbone must derive from ahpa's Backbone"
    assert model.takes in ("classes", "prompts"), f"takes: 'classes' or 'prompts', {model.takes!r}"
    if model.takes == "classes":
        assert model.num_classes is not None, "a backbone of classes must set num_classes"
    else:
        assert model.text_dim is not None, "a backbone of prompts must set text_dim"
    blocks = list(model.blocks)
    assert len(blocks) == model.depth, f"blocks: {len(blocks)} of them, but depth is {model.depth}"
    own = set(model.modules())
    assert all(block in own for block in blocks), "blocks: must be submodules of the backbone"
    assert "image" in model.streams, "streams: must hold 'image'"
    unknown = set(model.tap_kinds) - set(TAP_KINDS)
    assert "tokens" in model.tap_kinds and not unknown, f"tap_kinds: {sorted(model.tap_kinds)}"
    if model.tap_kinds != {"tokens"}:
        assert model.num_heads, "a backbone with taps of its attention must set num_heads"


def _check_prediction(model: Backbone, inputs: Inputs, out: BackboneOutput) -> None:
    assert not out.taps, "taps were returned that nobody asked for"
    assert (out.prefix, out.grid) == (model.prefix, model.grid), "out: other prefix or grid"
    assert set(out.pred) == set(inputs.x), f"pred: has {sorted(out.pred)}"
    for name, value in inputs.x.items():
        channels = model.out_channels if name == "image" else value.shape[1]
        pred = out.pred[name]
        what = f"pred[{name!r}]"
        _assert_shape(what, pred, (len(value), channels, *value.shape[2:]))
        assert pred.dtype == torch.float32, f"{what}: must be float32"
        assert_finite(what, pred)


def _tap_shape(model: Backbone, kind: str, batch: int) -> tuple[int, ...]:
    count = model.prefix + model.grid[0] * model.grid[1]
    heads = model.num_heads or 1
    if kind == "tokens":
        return (batch, count, model.hidden_size)
    if kind == "attention":
        return (batch, heads, count, count)
    return (batch, heads, count, model.hidden_size // heads)


def _check_taps(model: Backbone, inputs: Inputs, bare: BackboneOutput) -> None:
    blocks = {1, model.depth}
    asked = frozenset(Tap(block, kind) for block in blocks for kind in model.tap_kinds)
    out = model(*inputs, taps=asked)
    assert set(out.taps) == asked, f"asked for {sorted(asked)}, got {sorted(out.taps)}"
    for name, value in bare.pred.items():
        assert torch.equal(out.pred[name], value), f"taps change the prediction of {name!r}"
    for tap, value in out.taps.items():
        _assert_shape(str(tap), value, _tap_shape(model, tap.kind, len(inputs.t)))
        assert_finite(str(tap), value)
        _check_stop(model, inputs, tap, value)


def _check_stop(model: Backbone, inputs: Inputs, tap: Tap, value: Tensor) -> None:
    """A pass that stops at the tapped block gives the same tap and no prediction."""
    out = model(*inputs, taps=frozenset({tap}), stop=tap.block)
    assert not out.pred, f"pred must be empty if the pass stops at block {tap.block}"
    assert set(out.taps) == {tap}, f"asked for {tap} alone, got {sorted(out.taps)}"
    assert torch.equal(out.taps[tap], value), f"{tap}: differs if the pass stops there"


def _check_refused(model: Backbone, inputs: Inputs, tap: Tap) -> None:
    try:
        model(*inputs, taps=frozenset({tap}))
    except ValueError:
        return
    raise AssertionError(f"{tap} must raise ValueError")


def _check_time_per_token(model: Backbone, inputs: Inputs, bare: BackboneOutput) -> None:
    """Equal times of all tokens give what one time per sample gives. A backbone that cannot take a
    time per token raises ValueError."""
    tokens = model.grid[0] * model.grid[1]
    repeated = inputs.t[:, None].repeat(1, tokens)
    try:
        out = model(inputs.x, repeated, inputs.cond)
    except ValueError:
        return
    for name, value in bare.pred.items():
        close = torch.allclose(out.pred[name], value, rtol=1e-4, atol=1e-5)
        assert close, f"pred[{name!r}]: equal times per token differ from one time per sample"


def _check_training(model: Backbone, inputs: Inputs) -> None:
    pred = model.train()(*inputs).pred
    squares = [value.square().mean() for value in pred.values()]
    torch.stack(squares).sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        assert gradient is not None, f"no gradient reaches {name}"
        assert_finite(f"the gradient of {name}", gradient)
    model.eval()
