"""Samplers against analytic flows, their orders of convergence and a pass by hand; guidance by values and calls."""

import math
from fractions import Fraction

import pytest
import torch

from ahpa.registry import GUIDANCES, PATHS, SAMPLERS, build

KINDS = ["LinearPath", "CosinePath"]
STD = 0.6  # of the Gaussian data below


def path_of(kind):
    return build(PATHS, dict(type=kind))


def gaussian_velocity(kind, x, t):
    """E[v | x_t = x] for data N(0, STD^2), with alpha and sigma written out: half the log-derivative of the variance."""
    if kind == "LinearPath":
        variance, slope = (1 - t) ** 2 * STD**2 + t**2, -2 * (1 - t) * STD**2 + 2 * t
    else:
        angle = t * math.pi / 2
        variance, slope = angle.cos() ** 2 * STD**2 + angle.sin() ** 2, math.pi / 2 * (2 * angle).sin() * (1 - STD**2)
    return slope / (2 * variance) * x


def integrate(name, kind, steps, x, seed=0):
    stream = torch.Generator().manual_seed(seed)
    noise = lambda like: {k: torch.randn(v.shape, generator=stream, dtype=v.dtype) for k, v in like.items()}  # noqa: E731
    velocity = lambda s, t: {"image": gaussian_velocity(kind, s["image"], t.double())}  # noqa: E731
    return SAMPLERS.get(name)(velocity, {"image": x}, steps=steps, path=path_of(kind), noise=noise)["image"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(kind, name, order):
    """The flow of Gaussian data maps x at t = 1 to STD x at t = 0; halving the step divides the error by 2^order."""
    x = torch.ones(1, dtype=torch.float64)
    errors = [abs(float(integrate(name, kind, steps, x)) - STD) for steps in (20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stochastic_sampler_ends_in_the_data(kind):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).double()
    out = integrate("sde", kind, 250, x)
    assert float(out.std()) == pytest.approx(STD, rel=0.03) and abs(float(out.mean())) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([x, out]))[0, 1])) < 0.5, "it must forget where it began"


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_linear_ode_written_out(name):
    """dx/dt = a x + t over one stream and a constant over the other, by hand from t = 1 to 0 in four steps."""
    x, y, h = 0.5, -1.0, -0.25
    for i in range(4):
        t = 1 - i / 4
        slope = 0.8 * x + t
        if name == "heun" and i < 3:  # the last step is Euler's
            slope = (slope + 0.8 * (x + h * slope) + t + h) / 2
        x, y = x + h * slope, y + h * 3
    velocity = lambda s, t: {"image": 0.8 * s["image"] + t, "cls": 3 + 0 * s["cls"]}  # noqa: E731
    out = SAMPLERS.get(name)(velocity, {"image": torch.tensor([0.5]), "cls": torch.tensor([[-1.0]])}, steps=4,
                             path=path_of("LinearPath"), noise=None)  # fmt: skip
    assert out["image"].item() == pytest.approx(x, abs=1e-6) and out["cls"].item() == pytest.approx(y, abs=1e-6)
    assert out["image"].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_euler_maruyama_written_out(kind):
    """One pass by hand: linspace(1, 0.04, n), then 0; w = 2 sigma, which is 2 t on the linear path; the last step is
    the mean only."""
    steps, x = 5, torch.tensor([0.7, -0.2])
    wanted, stream = x.clone(), torch.Generator().manual_seed(3)
    grid = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    for i in range(steps):
        t, dt = grid[i], grid[i + 1] - grid[i]
        v = 0.3 * wanted - t
        if kind == "LinearPath":
            sigma, score = t, -(wanted + (1 - t) * v) / t  # METHODS section 0
        else:  # eps = (cos v 2/pi + sin x), as cos^2 + sin^2 = 1
            angle = t * math.pi / 2
            sigma = math.sin(angle)
            score = -(2 / math.pi * math.cos(angle) * v + sigma * wanted) / sigma
        wanted = wanted + (v - sigma * score) * dt
        if i < steps - 1:
            wanted = wanted + torch.randn(2, generator=stream) * (2 * sigma * abs(dt)) ** 0.5
    stream, calls = torch.Generator().manual_seed(3), []

    def velocity(s, t):
        calls.append(float(t))
        return {"image": 0.3 * s["image"] - t}

    out = SAMPLERS.get("sde")(velocity, {"image": x}, steps=steps, path=path_of(kind),
                              noise=lambda s: {"image": torch.randn(2, generator=stream)})  # fmt: skip
    torch.testing.assert_close(out["image"], wanted)
    assert len(calls) == steps and calls == pytest.approx(grid[:-1])


@pytest.mark.parametrize("name, steps, calls", [("euler", 10, 10), ("heun", 10, 19), ("sde", 10, 10)])
def test_number_of_model_calls(name, steps, calls):
    seen = []
    velocity = lambda x, t: seen.append(float(t)) or x  # noqa: E731
    SAMPLERS.get(name)(velocity, {"a": torch.ones(1)}, steps=steps, path=path_of("LinearPath"), noise=lambda x: x)
    assert len(seen) == calls and seen[0] == 1 and min(seen) > 0


def test_no_steps_is_refused():
    for name in ("euler", "heun", "sde"):
        with pytest.raises(ValueError, match="step"):
            SAMPLERS.get(name)(None, {"a": torch.ones(1)}, steps=0, path=None, noise=None)


def guided(scale, interval=(0.0, 1.0)):
    calls = []

    def velocity_of(x, t, cond):
        assert len(cond) == len(t) == len(x["image"])
        calls.append((cond.tolist(), float(t[0])))
        return {"image": cond.float()[:, None] * x["image"]}

    make = GUIDANCES.get("classifier-free")
    return make(velocity_of, torch.tensor([2, 3]), torch.tensor([10, 10]), scale, interval), calls


def test_guidance_written_out_and_only_where_asked():
    x = {"image": torch.ones(2, 1)}
    velocity, calls = guided(1.5, (0.2, 0.7))
    for t, inside in ((0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)):
        out = velocity(x, torch.tensor(t))["image"][:, 0].tolist()
        assert out == ([10 + 1.5 * (2 - 10), 10 + 1.5 * (3 - 10)] if inside else [2, 3])
        assert calls.pop()[0] == ([2, 3, 10, 10] if inside else [2, 3])  # the conditional half comes first
    velocity, calls = guided(1.0)
    assert velocity(x, torch.tensor(0.5))["image"][:, 0].tolist() == [2, 3] and calls[0][0] == [2, 3]


@pytest.mark.parametrize("steps", [20, 100, 250])
@pytest.mark.parametrize("interval", [("0", "0.7"), ("0", "0.85"), ("0.2", "0.7"), ("0.3", "0.8"), ("0.9", "0.95")])
def test_guidance_includes_both_bounds(steps, interval):
    """In exact fractions: the float32 time of a sampler must not fall out of an interval that ends on it."""
    low, high = map(Fraction, interval)
    wanted = sum(low <= 1 - Fraction(i, steps) <= high for i in range(steps))
    velocity, calls = guided(2.0, (float(low), float(high)))
    SAMPLERS.get("euler")(lambda x, t: {"image": 0 * velocity(x, t)["image"]}, {"image": torch.ones(2, 1)}, steps=steps)
    assert sum(len(cond) == 4 for cond, _ in calls) == wanted and len(calls) == steps
    for bound in (float(low), float(high)):  # a time in double precision is judged alike
        velocity({"image": torch.ones(2, 1)}, torch.tensor(bound, dtype=torch.float64))
        assert len(calls[-1][0]) == 4


@pytest.mark.parametrize(
    "interval", [(0.5, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1), (0.5,), (0, 0.5, 1), None, 0.7]
)
def test_intervals_that_are_refused(interval):
    with pytest.raises(ValueError, match="cfg_interval"):
        guided(2.0, interval)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_refused(scale):
    with pytest.raises(ValueError, match="cfg_scale"):
        guided(scale)
