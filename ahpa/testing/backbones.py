"""Conformance checks for backbones and token routings."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import BACKBONES, TOKEN_ROUTINGS, build
from ..registry.contracts import (
    Backbone,
    BackboneOutput,
    Geometry,
    Noised,
    Streams,
    Tap,
    TokenPlan,
    TokenRoute,
    TokenRouting,
)
from ..registry.values import TAP_KINDS
from .common import assert_finite, assert_half_precision, random_tensor, toy_geometry
from .priors import ToyPath


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
    token or refuses it; follows the plans of tokens that it declares; passes a gradient to every
    parameter; runs in half precision.

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
    several = model.grid[0] * model.grid[1] > 1
    if "route" in model.plan_kinds and several and model.depth > 1:
        _check_route(model, inputs, bare)
    if "groups" in model.plan_kinds and several and not model.prefix:
        _check_groups(model, inputs, bare)
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


def _route(model: Backbone, batch: int, kept: int, block: int) -> TokenPlan:
    """Return a route of `kept` other tokens in every image past a block."""
    count = model.grid[0] * model.grid[1]
    order = torch.arange(count).roll(1).expand(batch, count)
    ids = torch.stack([row.roll(3 * i)[:kept].sort().values for i, row in enumerate(order)])
    return TokenPlan(TokenRoute(ids, block, block))


def _routed_block(model: Backbone, inputs: Inputs) -> int:
    """Return the deepest block that tokens may skip; a backbone may refuse some."""
    for block in range(model.depth - 1, 0, -1):
        with suppress(ValueError):
            model(*inputs, plan=_route(model, len(inputs.t), 1, block))
            return block
    raise AssertionError("plan_kinds: the backbone refuses a route past each of its blocks")


def _check_route(model: Backbone, inputs: Inputs, bare: BackboneOutput) -> None:
    """A tap on the route holds the kept tokens; a route that nobody takes changes nothing."""
    count, batch = model.grid[0] * model.grid[1], len(inputs.t)
    tap = Tap(_routed_block(model, inputs))
    nobody = model(*inputs, plan=_route(model, batch, count, tap.block))
    half = _route(model, batch, count // 2, tap.block)
    out = model(*inputs, taps=frozenset({tap}), plan=half)
    wanted = (batch, model.prefix + count // 2, model.hidden_size)
    _assert_shape(f"{tap} on a route", out.taps[tap], wanted)
    assert out.route is half.route, "the output must name the route"
    for name, value in bare.pred.items():
        close = torch.allclose(nobody.pred[name], value, rtol=1e-4, atol=1e-5)
        assert close, f"pred[{name!r}]: a route that no token takes changes it"
        _assert_shape(f"pred[{name!r}] with a route", out.pred[name], tuple(value.shape))
        assert_finite(f"pred[{name!r}] with a route", out.pred[name])
        assert not torch.equal(out.pred[name], value), f"pred[{name!r}]: the route is ignored"


def _check_groups(model: Backbone, inputs: Inputs, bare: BackboneOutput) -> None:
    """One group of all tokens changes nothing; the last token's group does not see the others."""
    count, batch = model.grid[0] * model.grid[1], len(inputs.t)
    together = torch.zeros(batch, count, dtype=torch.long)
    one = model(*inputs, plan=TokenPlan(groups=together))
    apart = together.clone()
    apart[:, -1] = 1
    plan = TokenPlan(groups=apart)
    other = {name: value.clone() for name, value in inputs.x.items()}
    side = inputs.x["image"].shape[-1] // model.grid[1]
    other["image"][..., :side, :side] += 1  # the pixels of token 0
    last = [
        model(x, inputs.t, inputs.cond, plan=plan).pred["image"][..., -side:, -side:]
        for x in (inputs.x, other)
    ]
    close = torch.allclose(one.pred["image"], bare.pred["image"], rtol=1e-4, atol=1e-5)
    assert close, "pred: one group of all tokens changes it"
    assert torch.allclose(last[0], last[1], rtol=1e-4, atol=1e-5), "pred: tokens see another group"


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


def check_token_routing(
    routing: Mapping[str, Any] | TokenRouting,
    *,
    geometry: Geometry | None = None,
    batch: int = 4,
) -> None:
    """Check a token routing: blocks, different ids in order, and that only `rng` matters.

    Args:
        routing: A config of a registered routing, or an object.
        geometry: Sizes to build it with; a toy geometry of 12 blocks by default.
        batch: Number of images.

    Raises:
        AssertionError: If it breaks the contract.
    """
    geometry = geometry or toy_geometry(depth=12)
    built: TokenRouting = build(TOKEN_ROUTINGS, routing, geometry=geometry)
    first, last = built.first_block, built.last_block
    assert 1 <= first <= last < geometry.depth, (
        f"blocks {first}..{last} must lie before the last block {geometry.depth}"
    )
    noise = random_tensor(batch, *geometry.streams["image"], seed=1)
    image = {"image": noise}
    noised = Noised(image, torch.linspace(0, 1, batch), image, image, image, path=ToyPath())
    state = torch.get_rng_state()
    route, again = (built.draw(noised, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()), "draw must not use the global generator"
    assert torch.equal(route.kept, again.kept), "draw must be a function of the generator's state"
    assert (route.first, route.last) == (first, last), "the route has other blocks"
    kept, count = route.kept, geometry.grid[0] * geometry.grid[1]
    assert kept.dtype == torch.long and kept.ndim == 2, "kept must be int64 [B, K]"
    assert len(kept) == batch and 1 <= kept.shape[1] <= count, f"kept is {list(kept.shape)}"
    assert kept.min() >= 0 and kept.max() < count, f"ids must be in 0..{count - 1}"
    assert (kept.diff(dim=1) > 0).all(), "ids must be different and ascending"
