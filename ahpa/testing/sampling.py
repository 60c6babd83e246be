"""Conformance checks for samplers and guidance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import GUIDANCES, PATHS, SAMPLERS, build
from ..registry.contracts import Guidance, Path, Prediction, Sampler, Streams
from .common import assert_finite, random_tensor

POINT = 0.7
"""The data of the toy model: every value is this number."""

LEAST_SIGMA = 1e-4
"""Where the exact prediction, which divides by sigma, ends: some samplers ask for it at t = 0."""

FITTING_PATHS = {"velocity": "LinearPath", "noise": "DiscretePath"}


def _normals(like: Streams) -> Streams:
    """Draw normals in the shapes of the streams, the same ones at every call."""
    drawn: Streams = {}
    for name, x in like.items():
        drawn[name] = random_tensor(*x.shape, seed=9)
    return drawn


def _exact_model(path: Path, times: list[float]) -> Prediction:
    """Return the exact prediction for data that is one point, and record the times of its calls."""

    def model(x: Streams, t: Tensor) -> Streams:
        assert t.ndim == 0, f"a sampler must call the model with 0-d times, got {tuple(t.shape)}"
        assert t.dtype == torch.float32, f"times must be float32, got {t.dtype}"
        times.append(float(t))
        pred: Streams = {}
        for name, state in x.items():
            data = torch.full_like(state, POINT)
            mean = path.mix(data, torch.zeros_like(state), t)[0]
            eps = (state - mean) / path.sigma(t).clamp_min(LEAST_SIGMA)
            pred[name] = path.mix(data, eps, t)[1]
        return pred

    return model


def check_sampler(
    sampler: Mapping[str, Any] | Sampler,
    *,
    path: Mapping[str, Any] | Path | None = None,
    steps: int = 20,
) -> None:
    """Check a sampler: the times of its calls, shapes, determinism, and that it reaches the data.

    The model is exact for data that is a single point, so the samples must end near that point.

    Args:
        sampler: A config of a registered sampler, or a sampler.
        path: The path to integrate on; LinearPath for a velocity, DiscretePath for the noise.
        steps: Number of steps.

    Raises:
        AssertionError: If the sampler breaks the contract.
    """
    built: Sampler = build(SAMPLERS, sampler)
    assert built.needs in FITTING_PATHS, f"needs: {built.needs!r} is unknown"
    if path is None:
        path = dict(type=FITTING_PATHS[built.needs])
    route: Path = build(PATHS, path)
    start = {
        "image": random_tensor(3, 4, 2, 2),
        "cls": random_tensor(3, 5, seed=1),
    }
    given = {name: x.clone() for name, x in start.items()}
    times: list[float] = []
    model = _exact_model(route, times)

    def run(count: int) -> Streams:
        return built.sample(
            model,
            start,
            steps=count,
            path=route,
            noise=_normals,
        )

    ends = run(steps)
    enough = built.adaptive or len(times) >= steps
    assert enough, f"{steps} steps made {len(times)} model calls only"
    assert times[0] > 0.99, f"the first call must be at t = 1 (or the last step), got {times[0]}"
    assert list(ends) == list(start), f"the streams {list(start)} became {list(ends)}"
    for name, x in start.items():
        assert torch.equal(x, given[name]), "the starting noise must not be changed in place"
        assert ends[name].shape == x.shape, f"{name!r} became {tuple(ends[name].shape)}"
        assert ends[name].dtype == torch.float32, f"{name!r} must stay float32"
        assert_finite(f"{name!r}", ends[name])
        error = float((ends[name] - POINT).square().mean().sqrt())
        assert error < 0.4, f"{name!r} must end at the data; it is {error:.2g} away (RMS)"
    again = run(steps)
    for name, x in ends.items():
        assert torch.equal(x, again[name]), "a sampler must draw nothing but through `noise`"
    try:
        run(0)
    except ValueError:
        return
    raise AssertionError("steps=0 must raise ValueError")


def check_guidance(guidance: Mapping[str, Any] | Guidance) -> None:
    """Check a guidance: shapes, times, and that equal conditions leave the prediction unchanged.

    Args:
        guidance: A config of a registered guidance, or a guidance.

    Raises:
        AssertionError: If it breaks the contract.
    """
    built: Guidance = build(GUIDANCES, guidance)
    x = {
        "image": random_tensor(2, 4, 2, 2),
        "cls": random_tensor(2, 5, seed=1),
    }

    def predict(state: Streams, t: Tensor, cond: Any) -> Streams:
        count = len(state["image"])
        assert tuple(t.shape) == (count,), f"t must be [B] = {(count,)}, got {tuple(t.shape)}"
        assert len(cond) == count, f"{len(cond)} conditions for {count} samples"
        pred: Streams = {}
        for name, value in state.items():
            ones = [1] * (value.ndim - 1)
            pred[name] = cond.float().reshape(-1, *ones) * value
        return pred

    cond = torch.tensor([2, 3])
    for time in (0.0, 0.3, 1.0):
        t = torch.tensor(time)
        null = torch.tensor([5, 5])
        different = built.guide(predict, cond, null)(x, t)
        equal = built.guide(predict, cond, cond)(x, t)
        alone = predict(x, t.expand(2), cond)
        for name, state in x.items():
            assert different[name].shape == state.shape, f"{name!r} changed its shape"
            assert_finite(f"{name!r}", different[name])
            same = torch.allclose(equal[name], alone[name], atol=1e-5)
            assert same, "equal conditions must leave the prediction unchanged"
