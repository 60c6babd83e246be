"""Paths against autograd and closed forms, timesteps against moments, the noising of a batch."""

import math
from dataclasses import replace

import pytest
import torch
from support.registered import shipped
from torch import Tensor

from ahpa.flow.flows import ContinuousFlow
from ahpa.flow.paths import LinearPath
from ahpa.flow.timesteps import UniformTimesteps
from ahpa.registry import FLOWS, PATHS, TIMESTEPS, ConfigError, build
from ahpa.registry.contracts import Path
from ahpa.testing.common import random_tensor, toy_geometry
from ahpa.testing.flow import check_flow, check_path, check_timesteps

KINDS = ["LinearPath", "CosinePath"]
STD = 0.6  # of the Gaussian data below
CPU = torch.device("cpu")
GEOMETRY = toy_geometry()
STREAMS = toy_geometry(streams={"cls": (7,)})


def path_of(kind):
    return build(PATHS, dict(type=kind))


def flow_of(geometry=GEOMETRY, **options):
    return build(FLOWS, {"type": "Flow", **options}, geometry=geometry, where="model.flow")


def draw(count=100_000, seed=0, **cfg):
    timesteps = build(TIMESTEPS, cfg)
    return timesteps.sample(count, torch.Generator().manual_seed(seed), CPU)


def noised(flow, seed=5, batch=4):
    data = {}
    for number, (name, shape) in enumerate(flow.geometry.streams.items()):
        data[name] = random_tensor(batch, *shape, seed=number)
    return flow.sample(data, torch.Generator().manual_seed(seed))


# ---- paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped(PATHS))
def test_contract_of_every_path(name):
    check_path(dict(type=name))


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_derivatives(kind):
    path = path_of(kind)
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
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
        slope = angle.cos() * eps[i] - angle.sin() * x0[i]
        torch.testing.assert_close(v[i], math.pi / 2 * slope)


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
        score = path.score(x, gaussian_velocity(path, x, t), t)
        torch.testing.assert_close(score, -x / variance)


class Swapped(LinearPath):
    """A path whose conversions are swapped."""

    def to_data(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        return super().to_noise(x, pred, t)


class Backwards(LinearPath):
    """A path from noise at t = 0 to data at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


@pytest.mark.parametrize("broken, message", [(Swapped(), "to_data"), (Backwards(), "t = 0")])
def test_the_check_of_paths_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_path(broken)


# ---- timesteps ------------------------------------------------------------------------------


OPTIONS = {"ShiftedTimesteps": dict(shift=3.0)}


@pytest.mark.parametrize("name", shipped(TIMESTEPS))
def test_contract_of_every_distribution(name):
    check_timesteps(dict(type=name, **OPTIONS.get(name, {})), count=50_000)


def test_distributions():
    uniform = draw(type="UniformTimesteps")
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.var()) == pytest.approx(1 / 12, rel=0.02)
    logit = torch.logit(draw(type="LogitNormalTimesteps", mean=0.5, std=2.0).double())
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(logit.std()) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    "wrong", [dict(std=0), dict(std=float("inf")), dict(mean=float("nan"))], ids=str
)
def test_distributions_that_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(TIMESTEPS, dict(type="LogitNormalTimesteps", **wrong))


@pytest.mark.parametrize("inner", [{}, dict(timesteps=dict(type="LogitNormalTimesteps", std=0.7))])
def test_the_time_shift_written_out(inner):
    """t' = s t / (1 + (s - 1) t), of the same numbers that the inner distribution draws."""
    bare = draw(1000, **inner.get("timesteps", dict(type="UniformTimesteps")))
    for shift in (0.3, 1.0, 6.93):
        found = draw(1000, type="ShiftedTimesteps", shift=shift, **inner)
        wanted = [shift * t / (1 + (shift - 1) * t) for t in bare.double().tolist()]
        torch.testing.assert_close(found.double(), torch.tensor(wanted).double())
    assert torch.equal(draw(1000, type="ShiftedTimesteps", shift=1.0, **inner), bare)


@pytest.mark.parametrize("shift", [0, -1, float("inf"), "two", True])
def test_shifts_that_are_refused(shift):
    with pytest.raises(ConfigError, match="shift"):
        build(TIMESTEPS, dict(type="ShiftedTimesteps", shift=shift))


class Percent(UniformTimesteps):
    """Times in [0, 100]."""

    def sample(self, count, rng, device):
        return 100 * super().sample(count, rng, device)


class Stubborn(UniformTimesteps):
    """Times that ignore the generator."""

    def sample(self, count, rng, device):
        return torch.linspace(0, 1, count)


@pytest.mark.parametrize("broken, message", [(Percent(), r"\[0, 1\]"), (Stubborn(), "given gene")])
def test_the_check_of_timesteps_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_timesteps(broken)


PER_TOKEN = ("TokenTimeFlow", "TokenGroupFlow")


# ---- flows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", shipped(FLOWS))
def test_contract_of_every_flow(name, views):
    geometry = GEOMETRY if name in PER_TOKEN else STREAMS
    check_flow(dict(type=name, views=views), geometry=geometry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("name", ["Flow", *PER_TOKEN])
def test_contract_of_other_predictions(name, prediction, kind):
    check_flow(dict(type=name, prediction=prediction, path=dict(type=kind)))


def test_flow_draws_one_time_for_all_streams_from_the_generator_alone():
    flow = flow_of(STREAMS, path=dict(type="CosinePath"))
    first, again = noised(flow), noised(flow)
    for name, x0 in first.data.items():
        x, target = flow.path.mix(x0, first.noise[name], first.t)
        assert torch.equal(first.x[name], x) and torch.equal(first.target[name], target)
        assert torch.equal(first.x[name], again.x[name])
    assert first.t.shape == (4,) and not torch.equal(first.t, noised(flow, seed=6).t)


def test_flow_works_in_float32_whatever_comes_in():
    flow, half = flow_of(), torch.randn(3, 4, 8, 8).half()
    noisy = flow.sample({"image": half}, torch.Generator().manual_seed(0))
    full = flow.sample({"image": half.float()}, torch.Generator().manual_seed(0))
    for part in (noisy.x, noisy.target, noisy.data, noisy.noise):
        assert part["image"].dtype == torch.float32
    assert noisy.t.dtype == torch.float32 and torch.equal(noisy.x["image"], full.x["image"])


def test_the_same_data_and_noise_at_another_time():
    flow = flow_of()
    first = noised(flow)
    again = first.at(first.t * 0.5, GEOMETRY.grid)["image"]
    t = (first.t * 0.5).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(again, (1 - t) * first.data["image"] + t * first.noise["image"])


def test_flow_defaults():
    flow = flow_of()
    assert type(flow.path).__name__ == "LinearPath"
    assert type(flow.timesteps).__name__ == "UniformTimesteps"
    assert flow.provides == "velocity" and flow.default_sampler == "euler"


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(path={}), "path"),
        (dict(path=dict(type="LinerPath")), "LinearPath"),
        (dict(timesteps=dict(type="Uniform")), "UniformTimesteps"),
        (dict(views=0), "views"),
        (dict(views=True), "views"),
        (dict(prediction="score"), "velocity"),
        (dict(prediction="data", least_t=0), "least_t"),
        (dict(prediction="data", least_t=0.6), "least_t"),
    ],
    ids=str,
)
def test_flow_mistakes(wrong, message):
    with pytest.raises(ConfigError, match=f"model.flow.*{message}"):
        flow_of(**wrong)


class Bare(Path):
    """A path with a velocity but without derivatives: the contract alone."""

    def mix(self, x0, eps, t):
        return x0, eps

    def sigma(self, t):
        return t

    def to_noise(self, x, pred, t):
        return x

    to_data = score = to_noise


def test_a_conversion_needs_derivatives():
    assert flow_of(path=Bare()).to_target({}, {}, torch.zeros(1)) == {}
    with pytest.raises(ConfigError, match="'data' needs a path with alpha"):
        flow_of(path=Bare(), prediction="data")


class Unseeded(ContinuousFlow):
    """A flow that draws its times from the global generator."""

    def times(self, count, rng, device):
        return torch.rand(count)


class Forgetful(ContinuousFlow):
    """A flow that reports the wrong number of views."""

    def sample(self, streams, rng):
        return replace(super().sample(streams, rng), views=2)


@pytest.mark.parametrize("broken, message", [(Unseeded, "global"), (Forgetful, "views")])
def test_the_check_of_flows_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_flow(broken(geometry=GEOMETRY))


# ---- what the network predicts ----------------------------------------------------------------


TIMES = [0.0, 0.01, 0.05, 0.3, 0.9, 0.97, 1.0]


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_conversion_to_a_velocity_written_out(prediction):
    """On the linear path v = (x - x0) / max(t, .05) and v = (eps - x) / max(1 - t, .05)."""
    flow = flow_of(prediction=prediction)
    x, pred = random_tensor(7, 4, 2, 2), random_tensor(7, 4, 2, 2, seed=1)
    v = flow.to_target({"image": pred}, {"image": x}, torch.tensor(TIMES))["image"]
    for i, t in enumerate(TIMES):
        if prediction == "data":
            wanted = (x[i] - pred[i]) / max(t, 0.05)
        else:
            wanted = (pred[i] - x[i]) / max(1 - t, 0.05)
        torch.testing.assert_close(v[i], wanted, rtol=1e-4, atol=1e-5)
        alone = flow.to_target({"image": pred[i]}, {"image": x[i]}, torch.tensor(t))["image"]
        torch.testing.assert_close(alone, v[i])  # a sampler's 0-d time


def test_conversion_on_the_cosine_path_written_out():
    """v = alpha' x0 + sigma' eps, eps = (x - alpha x0) / sigma; sigma is at least sin(.05 pi/2)."""
    flow = flow_of(prediction="data", path=dict(type="CosinePath"))
    x, x0 = random_tensor(7, 3).double(), random_tensor(7, 3, seed=1).double()
    v = flow.to_target({"image": x0}, {"image": x}, torch.tensor(TIMES).double())["image"]
    for i, t in enumerate(TIMES):
        alpha, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
        floor = max(sigma, math.sin(0.05 * math.pi / 2))
        wanted = math.pi / 2 * (alpha * x[i] - x0[i]) / floor
        torch.testing.assert_close(v[i], wanted, rtol=1e-5, atol=1e-6)
        if sigma > floor:
            eps = (x[i] - alpha * x0[i]) / sigma
            torch.testing.assert_close(v[i], math.pi / 2 * (alpha * eps - sigma * x0[i]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Flow", "TokenTimeFlow"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_the_exact_prediction_becomes_the_target(prediction, name, kind):
    flow = flow_of(type=name, prediction=prediction, path=dict(type=kind), least_t=0.2)
    batch = noised(flow, batch=50)
    exact = {"velocity": batch.target, "data": batch.data, "noise": batch.noise}[prediction]
    found = flow.to_target(exact, batch.x, batch.t)["image"]
    assert torch.equal(found, batch.target["image"])
    velocity = flow_of(type=name, path=dict(type=kind))
    plain = noised(velocity, batch=50)
    assert torch.equal(plain.x["image"], batch.x["image"]), "the prediction must not change draws"
    far = (batch.sample_t > 0.25) & (batch.sample_t < 0.75)
    if name == "Flow":  # away from the ends nothing is clamped: the target is the velocity
        torch.testing.assert_close(
            batch.target["image"][far], plain.target["image"][far], rtol=1e-4, atol=1e-4
        )


def test_a_prediction_of_another_shape_is_refused():
    flow = flow_of(prediction="data")
    x = random_tensor(2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"'image', got \(2, 8, 8, 8\)"):
        flow.to_target({"image": torch.cat([x, x], 1)}, {"image": x}, torch.rand(2))


# ---- a time for each token ----------------------------------------------------------------------


def test_token_times_written_out():
    """tau_n = s on the mask and t elsewhere; every latent pixel is mixed at its token's time."""
    flow = flow_of(type="TokenTimeFlow", ratio=0.25)
    batch = noised(flow, batch=6)
    rng = torch.Generator().manual_seed(5)
    t = torch.rand(6, generator=rng)
    s = torch.rand(6, generator=rng)
    order = torch.rand(6, 16, generator=rng)
    noise = torch.randn(6, 4, 8, 8, generator=rng)
    assert batch.t.shape == (6, 16) and torch.equal(batch.noise["image"], noise)
    for b in range(6):
        masked = order[b].argsort()[:4].tolist()  # .25 of 16 tokens
        for row in range(8):
            for column in range(8):
                token = (row // 2) * 4 + column // 2
                tau = s[b] if token in masked else t[b]
                assert batch.t[b, token] == tau
                x0, eps = batch.data["image"][b, :, row, column], noise[b, :, row, column]
                x = batch.x["image"][b, :, row, column]
                torch.testing.assert_close(x, (1 - tau) * x0 + tau * eps)
    torch.testing.assert_close(batch.target["image"], noise - batch.data["image"])
    assert torch.equal(batch.sample_t, batch.t.mean(1))
    cleaner = torch.minimum(t, s)  # where Self-Flow's teacher looks
    assert torch.equal(batch.t.amin(1), cleaner)


def test_a_grid_that_is_not_square():
    geometry = replace(GEOMETRY, streams={"image": (4, 4, 12)}, grid=(2, 3))
    flow = flow_of(geometry, type="TokenTimeFlow")
    t = torch.arange(6.0).reshape(1, 6)
    spread = flow.spread(t, torch.zeros(1, 4, 4, 12))
    wanted = [[(row // 2) * 3 + column // 4 for column in range(12)] for row in range(4)]
    assert spread.shape == (1, 1, 4, 12) and spread[0, 0].tolist() == wanted


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 1.0])
def test_masks(ratio):
    rng = torch.Generator().manual_seed(0)
    exact = flow_of(type="TokenTimeFlow", ratio=ratio).draw_mask(2000, rng, CPU)
    assert exact.shape == (2000, 16) and set(exact.sum(1).tolist()) == {round(16 * ratio)}
    free = flow_of(type="TokenTimeFlow", ratio=ratio, mask="bernoulli").draw_mask(2000, rng, CPU)
    for mask in (exact, free):
        assert float(mask.float().mean()) == pytest.approx(ratio, abs=0.03)
        share = mask.float().mean(0)  # every token alike
        assert float(share.max() - share.min()) < 0.08
    if 0 < ratio < 1:
        assert len(set(free.sum(1).tolist())) > 3


def test_a_ratio_of_zero_is_one_time_for_all_tokens():
    batch = noised(flow_of(type="TokenTimeFlow", ratio=0.0))
    t = batch.t[:, :1]
    assert torch.equal(batch.t, t.expand(-1, 16))
    mixed = LinearPath().mix(batch.data["image"], batch.noise["image"], t[:, 0])[0]
    assert torch.equal(batch.x["image"], mixed)


@pytest.mark.parametrize(
    "geometry, options, message",
    [
        (STREAMS, {}, "'cls' is a vector"),
        (replace(GEOMETRY, grid=(3, 3)), {}, "8 x 8 does not divide into the token grid of 3 x 3"),
        (GEOMETRY, dict(ratio=1.5), "ratio"),
        (GEOMETRY, dict(mask="random"), "bernoulli, exact"),
    ],
    ids=str,
)
def test_token_time_mistakes(geometry, options, message):
    with pytest.raises(ConfigError, match=message):
        flow_of(geometry, type="TokenTimeFlow", **options)
