"""Paths, timestep distributions, samplers and guidance against closed forms."""

import math

import pytest
import torch

from ahpa.registry import FLOWS, GUIDANCES, PATHS, SAMPLERS, TIMESTEPS, ConfigError, build

KINDS = ["LinearPath", "CosinePath"]
STD = 0.6  # of the Gaussian data below


def path_of(kind):
    return build(PATHS, dict(type=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_derivatives(kind):
    path, t = path_of(kind), torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    assert path.alpha(t)[0] == 1 and path.sigma(t)[0] == 0  # t = 0 is data
    assert abs(path.alpha(t)[-1]) < 1e-12 and abs(path.sigma(t)[-1] - 1) < 1e-12  # t = 1 is noise
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        (wanted,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t), wanted)


def test_formulas_written_out():
    x0, eps, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    x, v = path_of("LinearPath").mix(x0, eps, t)
    for i in range(3):
        torch.testing.assert_close(x[i], (1 - t[i]) * x0[i] + t[i] * eps[i])
        torch.testing.assert_close(v[i], eps[i] - x0[i])
    x, v = path_of("CosinePath").mix(x0, eps, t)
    for i in range(3):
        angle = t[i] * math.pi / 2
        torch.testing.assert_close(x[i], angle.cos() * x0[i] + angle.sin() * eps[i])
        torch.testing.assert_close(v[i], math.pi / 2 * (angle.cos() * eps[i] - angle.sin() * x0[i]))


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_from_the_velocity(kind):
    path, x0, eps = path_of(kind), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    t = torch.linspace(0.05, 0.95, 5).double()
    x, v = path.mix(x0, eps, t)
    torch.testing.assert_close(path.to_data(x, v, t), x0)
    torch.testing.assert_close(path.to_noise(x, v, t), eps)
    if kind == "LinearPath":  # METHODS: s = -(x + (1 - t) v) / t
        torch.testing.assert_close(path.score(x, v, t), -(x + (1 - t)[:, None] * v) / t[:, None])


def gaussian_velocity(path, x, t):
    """E[v | x_t = x] for data N(0, STD^2): x0 and eps given x are linear in x."""
    a, s, da, ds = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    variance = a * a * STD**2 + s * s
    return (da * a * STD**2 + ds * s) / variance * x


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_exact_for_gaussian_data(kind):
    path, x = path_of(kind), torch.linspace(-2, 2, 9).double()
    for t in torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64):
        variance = path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2
        torch.testing.assert_close(path.score(x, gaussian_velocity(path, x, t), t), -x / variance)


def integrate(name, path, steps, x, seed=0):
    stream = torch.Generator().manual_seed(seed)
    noise = lambda like: {k: torch.randn(v.shape, generator=stream, dtype=v.dtype) for k, v in like.items()}  # noqa: E731
    velocity = lambda s, t: {"image": gaussian_velocity(path, s["image"], t.double())}  # noqa: E731
    return SAMPLERS.get(name)(velocity, {"image": x}, steps=steps, path=path, noise=noise)["image"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(kind, name, order):
    """The flow of Gaussian data maps x at t = 1 to STD x at t = 0; halving the step divides the error by 2^order."""
    path, x = path_of(kind), torch.ones(1, dtype=torch.float64)
    errors = [abs(float(integrate(name, path, steps, x)) - STD) for steps in (20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stochastic_sampler_ends_in_the_data(kind):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).double()
    out = integrate("sde", path_of(kind), 250, x)
    assert float(out.std()) == pytest.approx(STD, rel=0.03) and abs(float(out.mean())) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([x, out]))[0, 1])) < 0.5, "it must forget where it began"


def test_euler_maruyama_written_out():
    """One pass by hand on the linear path: linspace(1, 0.04, n), then 0; w = 2 t; the last step is the mean only."""
    path, steps, x = path_of("LinearPath"), 5, torch.tensor([0.7, -0.2])
    wanted, stream = x.clone(), torch.Generator().manual_seed(3)
    grid = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    for i in range(steps):
        t, dt = torch.tensor(grid[i]).float(), grid[i + 1] - grid[i]
        v = 0.3 * wanted - t
        score = -(wanted + (1 - t) * v) / t
        wanted = wanted + (v - t * score) * dt
        if i < steps - 1:
            wanted = wanted + torch.randn(2, generator=stream) * (2 * t * abs(dt)) ** 0.5
    stream, calls = torch.Generator().manual_seed(3), []

    def velocity(s, t):
        calls.append(float(t))
        return {"image": 0.3 * s["image"] - t}

    out = SAMPLERS.get("sde")(velocity, {"image": x}, steps=steps, path=path,
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
        calls.append((len(cond), float(t[0])))
        return {"image": cond.float()[:, None] * x["image"]}

    make = GUIDANCES.get("classifier-free")
    return make(velocity_of, torch.tensor([2, 3]), torch.tensor([10, 10]), scale, interval), calls


def test_guidance_written_out_and_only_where_asked():
    x = {"image": torch.ones(2, 1)}
    velocity, calls = guided(1.5, (0.2, 0.7))
    for t, inside in ((0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)):
        out = velocity(x, torch.tensor(t))["image"][:, 0].tolist()
        assert out == ([10 + 1.5 * (2 - 10), 10 + 1.5 * (3 - 10)] if inside else [2, 3])
        assert calls.pop()[0] == (4 if inside else 2)
    velocity, calls = guided(1.0)
    assert velocity(x, torch.tensor(0.5))["image"][:, 0].tolist() == [2, 3] and calls[0][0] == 2
    for wrong in ((0.5, 0.2), (-0.1, 1), (0, 1.1)):
        with pytest.raises(ValueError, match="cfg_interval"):
            guided(2.0, wrong)
    with pytest.raises(ValueError, match="cfg_scale"):
        guided(-1.0)


@pytest.mark.parametrize("name", TIMESTEPS.names())
def test_timesteps(name):
    draw = build(TIMESTEPS, dict(type=name))
    t = draw(50_000, torch.Generator().manual_seed(0), "cpu")
    assert t.shape == (50_000,) and t.dtype == torch.float32 and t.min() >= 0 and t.max() <= 1
    assert torch.equal(t, draw(50_000, torch.Generator().manual_seed(0), "cpu"))


def test_distributions():
    uniform = build(TIMESTEPS, dict(type="UniformTimesteps"))(100_000, torch.Generator().manual_seed(0), "cpu")
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01) and float(uniform.var()) == pytest.approx(
        1 / 12, rel=0.02
    )
    shifted = build(TIMESTEPS, dict(type="LogitNormalTimesteps", mean=0.5, std=2.0))
    logit = torch.logit(shifted(100_000, torch.Generator().manual_seed(0), "cpu").double())
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.03) and float(logit.std()) == pytest.approx(2.0, rel=0.02)
    with pytest.raises(ConfigError, match="std"):
        build(TIMESTEPS, dict(type="LogitNormalTimesteps", std=0))


def test_flow_draws_one_time_for_all_streams_from_the_generator_alone():
    flow = build(FLOWS, dict(type="Flow", path=dict(type="CosinePath")))
    data = {"image": torch.randn(4, 2, 3, 3), "cls": torch.randn(4, 7)}
    first, again = (flow.sample(data, torch.Generator().manual_seed(5)) for _ in range(2))
    for name, x0 in data.items():
        x, target = flow.path.mix(x0, first.noise[name], first.t)
        assert torch.equal(first.x[name], x) and torch.equal(first.target[name], target)
        assert torch.equal(first.x[name], again.x[name])
    assert first.t.shape == (4,) and not torch.equal(first.t, flow.sample(data, torch.Generator().manual_seed(6)).t)
