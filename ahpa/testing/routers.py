"""Conformance checks for routers and time encodings."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import ROUTERS, TIME_ENCODINGS, build
from ..registry.contracts import Features, LevelSpec, Router, TimeEncoding
from .common import assert_half_precision, random_tensor, toy_geometry

TIMES = (0.0, 0.37, 1.0)


def check_router(
    router: Router | Mapping[str, Any],
    *,
    channels: int = 8,
    levels: int = 15,
) -> None:
    """Check that a router keeps its contract.

    Its weights have the declared shapes, are float32 and depend on each sample alone; alphas sum to
    1; the target has `out_dim` channels and is `mix` of `weights`; it reads nothing but its
    `used_levels`; gradients reach every trainable parameter; the state dict restores it; half
    precision stays finite; it can be built on the meta device (if a config is given).

    Args:
        router: A config with a registered type, or a router built for `channels` and `levels`, a
            token grid of 4 x 4 and a content of width 6.
        channels: Channels of each level of the toy prior.
        levels: Number of levels, called level0, level1, ...

    Raises:
        AssertionError: If the router breaks its contract.
    """
    spec = {f"level{index}": LevelSpec(channels, 8) for index in range(levels)}
    geometry = toy_geometry(width=6)
    config = router
    if isinstance(config, Mapping):
        with torch.device("meta"):
            blank = build(ROUTERS, config, levels=spec, geometry=geometry)
        for name, value in blank.state_dict().items():
            assert value.is_meta, f"built on the meta device, it still allocates {name!r}"
        router = build(ROUTERS, config, levels=spec, geometry=geometry)
    assert isinstance(router, Router), f"{type(router).__name__} is not a Router"
    _check_levels(router, spec)

    count = len(TIMES)
    t = torch.tensor(TIMES)
    content = random_tensor(count, 16, 6, seed=99)
    features = {}
    for seed, name in enumerate(spec):
        features[name] = random_tensor(count, channels, 8, 8, seed=seed)
    router.eval()
    _check_weights(router, t, content)
    _check_target(router, features, t, content)
    _check_gradients(router, features, t, content)

    other = copy.deepcopy(router)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    other.load_state_dict(router.state_dict())
    target = router(features, t, content)
    restored = other(features, t, content)
    same = torch.equal(target, restored)
    assert same, "a state dict does not restore the router: something that it uses is missing"
    assert_half_precision(type(router).__name__, lambda: router(features, t, content))


def _check_levels(router: Router, spec: Mapping[str, LevelSpec]) -> None:
    used = router.used_levels
    unknown = set(used) - set(spec)
    assert not unknown, f"used_levels has names that the prior does not: {sorted(unknown)}"
    order = tuple(name for name in spec if name in used)
    assert used == order, "used_levels is not in the prior's order"
    for group, names in router.groups.items():
        missing = set(names) - set(used)
        assert names, f"group {group!r} has no levels"
        assert not missing, f"used_levels lacks levels of group {group!r}: {sorted(missing)}"
    for group, shares in router.membership().items():
        assert group in router.groups, f"membership() has an unknown group {group!r}"
        wanted = (len(router.groups[group]),)
        assert tuple(shares.shape) == wanted, f"membership of {group!r} is not [L] = {wanted}"


def _check_weights(router: Router, t: Tensor, content: Tensor) -> None:
    count = len(t)
    intra, inter = router.weights(t, content)
    wanted = (count, len(router.groups))
    assert tuple(inter.shape) == wanted, f"betas are {tuple(inter.shape)}, expected [B, G]"
    assert inter.dtype == torch.float32, f"betas are {inter.dtype}, expected float32"
    assert (inter >= 0).all(), "betas must not be negative"
    assert list(intra) == list(router.groups), f"alphas of {list(intra)}, expected all groups"
    for group, names in router.groups.items():
        alpha = intra[group]
        wanted = (count, len(names))
        assert tuple(alpha.shape) == wanted, f"alphas of {group!r} are not [B, L] = {wanted}"
        assert alpha.dtype == torch.float32, f"alphas of {group!r} are not float32"
        total = alpha.sum(-1)
        wanted_sum = torch.ones(count)
        sums_to_one = torch.allclose(total, wanted_sum, atol=1e-5)
        assert sums_to_one, f"alphas of {group!r} do not sum to 1"
    first, _ = router.weights(t[:1], content[:1])
    for group, alpha in first.items():
        in_batch = intra[group][0]
        same = torch.allclose(alpha[0], in_batch, atol=1e-5)
        assert same, f"alphas of {group!r} change with the other samples of the batch"


def _check_target(
    router: Router,
    features: Features,
    t: Tensor,
    content: Tensor,
) -> None:
    read = {name: features[name] for name in router.used_levels}
    target = router(read, t, content)
    tokens = len(router.prefix) + 16
    wanted = (len(t), tokens, router.out_dim)
    assert tuple(target.shape) == wanted, f"the target is {tuple(target.shape)}, expected {wanted}"
    assert target.dtype == torch.float32, f"the target is {target.dtype}, expected float32"
    weights = router.weights(t, content)
    mixed = router.mix(read, *weights)
    assert torch.equal(target, mixed), "forward is not mix(features, *weights(t, content))"


def _check_gradients(
    router: Router,
    features: Features,
    t: Tensor,
    content: Tensor,
) -> None:
    trained = {}
    for name, value in router.named_parameters():
        if value.requires_grad:
            trained[name] = value
    if not trained:
        return
    router.zero_grad(set_to_none=True)
    target = router(features, t, content)
    assert target.requires_grad, f"no gradient reaches {list(trained)}"
    scale = random_tensor(*target.shape, seed=5)
    (target * scale).sum().backward()
    for name, value in trained.items():
        assert value.grad is not None, f"no gradient reaches {name!r}"
    router.zero_grad(set_to_none=True)


def check_time_encoding(encoding: TimeEncoding | Mapping[str, Any]) -> None:
    """Check that a time encoding keeps its contract.

    It encodes times [B] in [0, 1] to [B, dim], float32, finite, each sample by itself, and tells
    different times apart.

    Args:
        encoding: A config with a registered type, or an encoding.

    Raises:
        AssertionError: If the encoding breaks its contract.
    """
    if isinstance(encoding, Mapping):
        encoding = build(TIME_ENCODINGS, encoding)
    assert isinstance(encoding, TimeEncoding), f"{type(encoding).__name__} is not a TimeEncoding"
    t = torch.tensor(TIMES)
    encoded = encoding(t)
    wanted = (len(t), encoding.dim)
    assert tuple(encoded.shape) == wanted, f"{tuple(encoded.shape)} is not [B, dim] = {wanted}"
    assert encoded.dtype == torch.float32, f"the encoding is {encoded.dtype}, expected float32"
    assert encoded.isfinite().all(), "the encoding has values that are not finite"
    alone = encoding(t[:1])
    assert torch.allclose(alone[0], encoded[0]), "a time's encoding changes with others"
    assert not torch.allclose(encoded[0], encoded[1]), "t = 0 and t = 0.37 are encoded alike"
