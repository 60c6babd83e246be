"""Paths against autograd and closed forms, timestep distributions against their moments, and the noising of a batch."""

import math

import pytest
import torch

from ahpa.registry import FLOWS, PATHS, TIMESTEPS, ConfigError, build

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
    for wrong in (dict(std=0), dict(std=float("inf")), dict(mean=float("nan"))):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build(TIMESTEPS, dict(type="LogitNormalTimesteps", **wrong))


def test_flow_draws_one_time_for_all_streams_from_the_generator_alone():
    flow = build(FLOWS, dict(type="Flow", path=dict(type="CosinePath")))
    data = {"image": torch.randn(4, 2, 3, 3), "cls": torch.randn(4, 7)}
    first, again = (flow.sample(data, torch.Generator().manual_seed(5)) for _ in range(2))
    for name, x0 in data.items():
        x, target = flow.path.mix(x0, first.noise[name], first.t)
        assert torch.equal(first.x[name], x) and torch.equal(first.target[name], target)
        assert torch.equal(first.x[name], again.x[name])
    assert first.t.shape == (4,) and not torch.equal(first.t, flow.sample(data, torch.Generator().manual_seed(6)).t)


def test_flow_works_in_float32_whatever_comes_in():
    flow, half = build(FLOWS, dict(type="Flow")), torch.randn(3, 2, 4, 4).half()
    noisy = flow.sample({"image": half}, torch.Generator().manual_seed(0))
    full = flow.sample({"image": half.float()}, torch.Generator().manual_seed(0))
    for part in (noisy.x, noisy.target, noisy.data, noisy.noise):
        assert part["image"].dtype == torch.float32
    assert noisy.t.dtype == torch.float32 and torch.equal(noisy.x["image"], full.x["image"])


def test_flow_defaults_and_mistakes():
    flow = build(FLOWS, dict(type="Flow"))
    assert type(flow.path).__name__ == "LinearPath" and type(flow.timesteps).__name__ == "UniformTimesteps"
    for wrong, message in ((dict(path={}), "path"), (dict(path=dict(type="LinerPath")), "LinearPath"),
                           (dict(timesteps=dict(type="Uniform")), "UniformTimesteps")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"model.flow.*{message}"):
            build(FLOWS, dict(type="Flow", **wrong), where="model.flow")
