"""Conformance checks for paths, distributions of training times, and flows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, SAMPLERS, TIMESTEPS, build
from ..registry.contracts import Flow, Geometry, Noised, Path, Streams, Timesteps
from .common import assert_finite, random_tensor, toy_geometry

CPU = torch.device("cpu")


def rng(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def assert_close(
    claim: str,
    found: Tensor,
    wanted: Tensor,
    *,
    atol: float = 1e-6,
) -> None:
    """Raise AssertionError with `claim` unless two tensors agree in shape and value."""
    assert found.shape == wanted.shape, claim
    same = torch.allclose(found, wanted, rtol=1e-5, atol=atol)
    assert same, claim


def assert_unit_range(name: str, t: Tensor) -> None:
    """Raise AssertionError unless times are float32 in [0, 1]."""
    assert t.dtype == torch.float32, f"{name} must be float32, got {t.dtype}"
    assert_finite(name, t)
    low = float(t.min())
    high = float(t.max())
    assert low >= 0, f"{name} must lie in [0, 1], got {low}"
    assert high <= 1, f"{name} must lie in [0, 1], got {high}"


def check_path(path: Mapping[str, Any] | Path) -> None:
    """Check a path: its ends, shapes of times, and that its conversions invert `mix`.

    Args:
        path: A config of a registered path, or a path.

    Raises:
        AssertionError: If the path breaks the contract.
    """
    built: Path = build(PATHS, path)
    assert built.predicts in ("velocity", "noise"), f"predicts: {built.predicts!r} is unknown"
    shape = (5, 3, 2, 2)
    x0 = random_tensor(*shape, seed=1).double()
    eps = random_tensor(*shape, seed=2).double()
    t = torch.linspace(0.1, 0.9, 5).double()
    x, target = built.mix(x0, eps, t)
    assert x.shape == x0.shape == target.shape, "mix must return two tensors shaped as x0"
    again = built.mix(x0, eps, t)
    assert torch.equal(x, again[0]), "mix must be a function of its arguments alone"
    alone, _ = built.mix(x0[:1], eps[:1], t[0])
    assert_close("mix must take 0-d times as it takes [B]", alone, x[:1])
    pixels = t.reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    spread, _ = built.mix(x0, eps, pixels)
    assert_close("mix must take times that broadcast over the data", spread, x)
    assert_close("to_data must invert mix", built.to_data(x, target, t), x0)
    assert_close("to_noise must invert mix", built.to_noise(x, target, t), eps)
    sigma = built.sigma(t)
    assert sigma.shape == t.shape, "sigma must be shaped as t"
    wanted = -eps / sigma.reshape(5, 1, 1, 1)
    score = built.score(x, target, t)
    assert_close("the score must be -eps / sigma", score, wanted, atol=1e-5)
    if built.predicts == "noise":
        assert torch.equal(target, eps), "the target of a path that predicts the noise is the noise"
    first, _ = built.mix(x0, eps, torch.zeros_like(t))
    last, _ = built.mix(x0, eps, torch.ones_like(t))
    assert_close("t = 0 must be (almost) data", first, x0, atol=0.1)
    assert_close("t = 1 must be (almost) noise", last, eps, atol=0.1)


def check_timesteps(
    timesteps: Mapping[str, Any] | Timesteps,
    *,
    count: int = 1000,
) -> None:
    """Check a distribution of times: shape, dtype, range, and that only `rng` matters.

    Args:
        timesteps: A config of a registered distribution, or an object.
        count: Number of times to draw.

    Raises:
        AssertionError: If it breaks the contract.
    """
    built: Timesteps = build(TIMESTEPS, timesteps)
    t = built.sample(count, rng(0), CPU)
    assert tuple(t.shape) == (count,), f"sample gave {tuple(t.shape)}, expected {(count,)}"
    assert_unit_range("times", t)
    again = built.sample(count, rng(0), CPU)
    assert torch.equal(t, again), "times must be a function of the generator's state alone"
    other = built.sample(count, rng(1), CPU)
    assert not torch.equal(t, other), "times must be drawn from the given generator"


def check_flow(
    flow: Mapping[str, Any] | Flow,
    *,
    geometry: Geometry | None = None,
    batch: int = 4,
) -> None:
    """Check a flow: shapes, dtypes, randomness, views, and a default sampler that fits.

    Args:
        flow: A config of a registered flow, or a flow.
        geometry: Sizes to build it with; a toy geometry by default.
        batch: Number of images.

    Raises:
        AssertionError: If it breaks the contract.
    """
    geometry = geometry or toy_geometry()
    built: Flow = build(FLOWS, flow, geometry=geometry)
    streams: Streams = {}
    for seed, (name, shape) in enumerate(geometry.streams.items()):
        clean = random_tensor(batch, *shape, seed=seed)
        streams[name] = clean.half()
    state = torch.get_rng_state()
    noised = built.sample(streams, rng(0))
    assert torch.equal(state, torch.get_rng_state()), "sample must not use the global generator"
    _check_noised(built, noised, streams, geometry)
    again = built.sample(streams, rng(0))
    other = built.sample(streams, rng(1))
    assert torch.equal(noised.t, again.t), "times must be a function of the generator's state"
    assert not torch.equal(noised.t, other.t), "times must be drawn from the given generator"
    for name in streams:
        same = torch.equal(noised.x[name], again.x[name])
        assert same, "the noise must come from the generator"
        same = torch.equal(noised.noise[name], other.noise[name])
        assert not same, "the noise must come from the generator"
    sampler = SAMPLERS.get(built.default_sampler)
    assert sampler.needs == built.provides, (
        f"the default sampler {built.default_sampler!r} needs a {sampler.needs}, "
        f"the flow provides a {built.provides}"
    )


def _check_noised(
    flow: Flow,
    noised: Noised,
    streams: Streams,
    geometry: Geometry,
) -> None:
    """Check the parts of a noised batch."""
    count = flow.views * len(next(iter(streams.values())))
    tokens = geometry.grid[0] * geometry.grid[1]
    shape = tuple(noised.t.shape)
    assert shape in ((count,), (count, tokens)), (
        f"t is {shape}, not {(count,)} or {(count, tokens)}"
    )
    assert_unit_range("t", noised.t)
    assert noised.views == flow.views, "Noised.views must be the flow's"
    assert noised.path is flow.path, "Noised.path must be the flow's path"
    parts = {
        "x": noised.x,
        "target": noised.target,
        "data": noised.data,
        "noise": noised.noise,
    }
    for part, values in parts.items():
        assert list(values) == list(streams), f"{part} has the streams {list(values)}"
        for name, value in values.items():
            wanted = (count, *geometry.streams[name])
            assert tuple(value.shape) == wanted, f"{part}[{name!r}] is not {wanted}"
            assert value.dtype == torch.float32, f"{part}[{name!r}] must be float32"
            assert_finite(f"{part}[{name!r}]", value)
    for name, clean in streams.items():
        repeated = torch.cat([clean.float()] * flow.views)
        assert torch.equal(noised.data[name], repeated), "data must be the batch, once per view"
    target = flow.to_target(noised.target, noised.x, noised.t)
    assert target.keys() == noised.target.keys(), "to_target must keep the streams"
