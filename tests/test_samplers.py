"""Samplers against analytic flows, their orders of convergence and a pass by hand; guidance by
values and calls."""

import math
from fractions import Fraction

import pytest
import torch
from support.registered import shipped

from ahpa.registry import GUIDANCES, PATHS, SAMPLERS, ConfigError, build
from ahpa.sampling.guidance import ClassifierFreeGuidance, joined
from ahpa.sampling.samplers import EulerSampler
from ahpa.testing.sampling import check_guidance, check_sampler

KINDS = ["LinearPath", "CosinePath"]
ALONG_A_VELOCITY = ["euler", "heun", "sde"]
STD = 0.6  # of the Gaussian data below


def path_of(kind):
    return build(PATHS, dict(type=kind))


def run(name, model, x, *, steps, path=None, noise=None, **options):
    sampler = build(SAMPLERS, dict(type=name, **options))
    return sampler.sample(model, x, steps=steps, path=path or path_of("LinearPath"), noise=noise)


def gaussian_velocity(kind, x, t):
    """E[v | x_t = x] for data N(0, STD^2), with alpha and sigma written out: half the
    log-derivative of the variance."""
    if kind == "LinearPath":
        variance, slope = (1 - t) ** 2 * STD**2 + t**2, -2 * (1 - t) * STD**2 + 2 * t
    else:
        angle = t * math.pi / 2
        variance = angle.cos() ** 2 * STD**2 + angle.sin() ** 2
        slope = math.pi / 2 * (2 * angle).sin() * (1 - STD**2)
    return slope / (2 * variance) * x


def integrate(name, kind, steps, x, seed=0, **options):
    stream = torch.Generator().manual_seed(seed)

    def noise(like):
        shapes = {k: (v.shape, v.dtype) for k, v in like.items()}
        return {k: torch.randn(s, generator=stream, dtype=d) for k, (s, d) in shapes.items()}

    def velocity(state, t):
        return {"image": gaussian_velocity(kind, state["image"], t.double())}

    path = path_of(kind)
    out = run(name, velocity, {"image": x}, steps=steps, path=path, noise=noise, **options)
    return out["image"]


@pytest.mark.parametrize("name", shipped(SAMPLERS))
def test_contract_of_every_sampler(name):
    check_sampler(dict(type=name))


@pytest.mark.parametrize("name", ALONG_A_VELOCITY)
def test_contract_on_the_cosine_path_and_with_a_shift(name):
    check_sampler(dict(type=name), path=dict(type="CosinePath"))
    check_sampler(dict(type=name, shift=3.0))


class Short(EulerSampler):
    """A sampler that stops halfway."""

    def times(self, start, end, count, x):
        return super().times(start, 0.5, count, x)


class Noisy(EulerSampler):
    """A sampler that draws noise of its own."""

    def sample(self, model, x, *, steps, path, noise):
        out = super().sample(model, x, steps=steps, path=path, noise=noise)
        return {name: value + 0.01 * torch.randn_like(value) for name, value in out.items()}


@pytest.mark.parametrize("broken, message", [(Short(), "end at the data"), (Noisy(), "`noise`")])
def test_the_check_of_samplers_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_sampler(broken)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(kind, name, order):
    """The flow of Gaussian data maps x at t = 1 to STD x at t = 0; halving the step divides the
    error by 2^order."""
    x = torch.ones(1, dtype=torch.float64)
    errors = [abs(float(integrate(name, kind, steps, x)) - STD) for steps in (20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stochastic_sampler_ends_in_the_data(kind):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).double()
    out = integrate("sde", kind, 250, x)
    assert float(out.std()) == pytest.approx(STD, rel=0.03) and abs(float(out.mean())) < 0.02
    correlation = abs(float(torch.corrcoef(torch.stack([x, out]))[0, 1]))
    assert correlation < 0.5, "it must forget where it began"


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_linear_ode_written_out(name):
    """dx/dt = a x + t over one stream and a constant over the other, by hand from t = 1 to 0 in
    four steps."""
    x, y, h = 0.5, -1.0, -0.25
    for i in range(4):
        t = 1 - i / 4
        slope = 0.8 * x + t
        if name == "heun" and i < 3:  # the last step is Euler's
            slope = (slope + 0.8 * (x + h * slope) + t + h) / 2
        x, y = x + h * slope, y + h * 3

    def velocity(s, t):
        return {"image": 0.8 * s["image"] + t, "cls": 3 + 0 * s["cls"]}

    start = {"image": torch.tensor([0.5]), "cls": torch.tensor([[-1.0]])}
    out = run(name, velocity, start, steps=4)
    assert out["image"].item() == pytest.approx(x, abs=1e-6)
    assert out["cls"].item() == pytest.approx(y, abs=1e-6)
    assert out["image"].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_euler_maruyama_written_out(kind):
    """One pass by hand: linspace(1, 0.04, n), then 0; w = 2 sigma, which is 2 t on the linear path;
    the last step is the mean only."""
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

    def noise(s):
        return {"image": torch.randn(2, generator=stream)}

    out = run("sde", velocity, {"image": x}, steps=steps, path=path_of(kind), noise=noise)
    torch.testing.assert_close(out["image"], wanted)
    assert len(calls) == steps and calls == pytest.approx(grid[:-1])


@pytest.mark.parametrize(
    "name, steps, calls", [("euler", 10, 10), ("heun", 10, 19), ("sde", 10, 10)]
)
def test_number_of_model_calls(name, steps, calls):
    seen = []
    run(name, lambda x, t: seen.append(float(t)) or x, {"a": torch.ones(1)}, steps=steps,
        noise=lambda x: x)  # fmt: skip
    assert len(seen) == calls and seen[0] == 1 and min(seen) > 0


@pytest.mark.parametrize("name, last", [("euler", 0.2), ("sde", 0.04)])
def test_the_shift_of_the_times_written_out(name, last):
    """t' = s t / (1 + (s - 1) t) of the equidistant times; the order of convergence stays."""
    seen = []
    run(name, lambda x, t: seen.append(float(t)) or x, {"a": torch.ones(1)}, steps=5, shift=4.0,
        noise=lambda x: x)  # fmt: skip
    bare = [1 - i * (1 - last) / 4 for i in range(5)]
    assert seen == pytest.approx([4 * t / (1 + 3 * t) for t in bare], rel=1e-6)
    x = torch.ones(1, dtype=torch.float64)
    errors = [abs(float(integrate("euler", "LinearPath", n, x, shift=2.0)) - STD) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


# ---- adaptive steps -------------------------------------------------------------------------

STEEP = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
BY_TORCHDIFFEQ = {  # torchdiffeq 0.2.5, "dopri5", a step at t = 0: calls and end of dx/dt below
    (1e-3, 1e-6): (134, [1.2258690701143173, -2.6855333371628184e-07, 2.4509975690592323]),
    (1e-6, 1e-9): (320, [1.2258691145713163, -4.150396533219823e-10, 2.4509976721158084]),
}


def adaptive(model, x, **options):
    """The end of dopri5 and the times of its calls."""
    seen = []

    def watched(state, t):
        seen.append(float(t))
        return {"image": model(state["image"], t)}

    return run("dopri5", watched, {"image": x}, steps=1, **options)["image"], seen


@pytest.mark.parametrize("rtol, atol", BY_TORCHDIFFEQ)
def test_dopri5_takes_the_steps_of_torchdiffeq(rtol, atol):
    """dx/dt = 8 sin 5x + x in float64: the same calls, and the same end to 1e-13."""
    out, seen = adaptive(lambda x, t: 8 * torch.sin(5 * x) + x, STEEP, rtol=rtol, atol=atol)
    calls, wanted = BY_TORCHDIFFEQ[rtol, atol]
    assert len(seen) == calls and seen[0] == 1 and min(seen) == 0
    torch.testing.assert_close(out, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_dopri5_against_torchdiffeq_itself(scale):
    """On a network in float32, where it is installed."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))

    @torch.no_grad()
    def velocity(x, t):
        return scale * net(torch.cat([x, t.to(x).expand(len(x), 1)], 1))

    x, times, calls = torch.randn(5, 8), torch.tensor([1.0, 0.0], dtype=torch.float64), []

    def counted(t, state):
        calls.append(float(t))
        return velocity(state, t)

    own = dict(method="dopri5", rtol=1e-3, atol=1e-6, options=dict(step_t=times[1:]))
    wanted = odeint(counted, x, times, **own)[-1]
    out, seen = adaptive(velocity, x)
    assert len(seen) == len(calls)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_dopri5_keeps_its_tolerance(kind):
    """The flow of Gaussian data ends at STD x; a smaller tolerance means a smaller error."""
    x = torch.ones(1, dtype=torch.float64)
    errors = []
    for rtol in (1e-2, 1e-4, 1e-6):
        out = integrate("dopri5", kind, 1, x, rtol=rtol, atol=1e-3 * rtol)
        errors.append(abs(float(out) - STD))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 5e-6


def test_dopri5_has_steps_of_its_own_and_one_error_over_all_streams():
    seen = {}
    for steps in (1, 1000):
        out, seen[steps] = adaptive(lambda x, t: torch.sin(9 * x), torch.ones(1))
    assert seen[1] == seen[1000]

    def velocity(x, t):
        return {"image": torch.sin(9 * x["image"]), "cls": 0 * x["cls"]}

    calls = []
    start = {"image": torch.ones(1), "cls": torch.ones(99)}
    run("dopri5", lambda x, t: calls.append(t) or velocity(x, t), start, steps=1)
    assert len(calls) < len(seen[1])  # the mean square over 100 values of which 99 have no error


def test_dopri5_says_when_its_tolerance_cannot_be_kept():
    with pytest.raises(ConfigError, match="cannot be kept at t=1;.*weights are finite"):
        adaptive(lambda x, t: x * float("nan"), torch.ones(2))
    for option in ("rtol", "atol"):
        with pytest.raises(ConfigError, match=option):
            build(SAMPLERS, {"type": "dopri5", option: 0})
    with pytest.raises(ConfigError, match="steps: must be"):
        run("dopri5", None, {"a": torch.ones(1)}, steps=0)


@pytest.mark.parametrize("name", ALONG_A_VELOCITY)
def test_no_steps_and_no_shift_are_refused(name):
    with pytest.raises(ConfigError, match="steps: must be"):
        run(name, None, {"a": torch.ones(1)}, steps=0)
    with pytest.raises(ConfigError, match="shift"):
        build(SAMPLERS, dict(type=name, shift=0))


# ---- guidance -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped(GUIDANCES))
@pytest.mark.parametrize("options", [{}, dict(scale=2.5), dict(scale=2.5, interval=(0.2, 0.5))])
def test_contract_of_every_guidance(name, options):
    check_guidance(dict(type=name, **options))


class Doubled(ClassifierFreeGuidance):
    """A guidance that returns the halves of its doubled batch together."""

    def combine(self, name, both, x):
        return both


class Scaled(ClassifierFreeGuidance):
    """A guidance that scales the null prediction too."""

    def combine(self, name, both, x):
        return self.scale * super().combine(name, both, x)


@pytest.mark.parametrize("broken, message", [(Doubled, "shape"), (Scaled, "equal conditions")])
def test_the_check_of_guidance_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_guidance(broken(scale=2.0))


def guided(scale, interval=(0.0, 1.0)):
    calls = []

    def predict(x, t, cond):
        assert len(cond) == len(t) == len(x["image"])
        calls.append((cond.tolist(), float(t[0])))
        return {"image": cond.float()[:, None] * x["image"]}

    guidance = build(GUIDANCES, dict(type="classifier-free", scale=scale, interval=interval))
    return guidance.guide(predict, torch.tensor([2, 3]), torch.tensor([10, 10])), calls


@pytest.mark.parametrize(
    "t, inside", [(0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)]
)
def test_guidance_written_out_and_only_where_asked(t, inside):
    velocity, calls = guided(1.5, (0.2, 0.7))
    out = velocity({"image": torch.ones(2, 1)}, torch.tensor(t))["image"][:, 0].tolist()
    assert out == ([10 + 1.5 * (2 - 10), 10 + 1.5 * (3 - 10)] if inside else [2, 3])
    # the conditional half comes first
    assert calls.pop()[0] == ([2, 3, 10, 10] if inside else [2, 3])


def guided_streams(**options):
    """Both streams' guided prediction at t = 0.5, where the condition is 2 and the null one 10."""

    def predict(x, t, cond):
        return {name: cond.float()[:, None] * value for name, value in x.items()}

    guidance = build(GUIDANCES, dict(type="classifier-free", **options))
    model = guidance.guide(predict, torch.tensor([2]), torch.tensor([10]))
    out = model({"image": torch.ones(1, 1), "cls": torch.ones(1, 1)}, torch.tensor(0.5))
    return float(out["image"]), float(out["cls"])


@pytest.mark.parametrize(
    "cls_scale, wanted", [(None, 10 - 1.5 * 8), (2.25, 10 - 2.25 * 8), (1, 2), (0, 2)]
)
def test_the_class_stream_has_a_scale_of_its_own(cls_scale, wanted):
    """As in REG's code: a scale above 0, else the conditional prediction."""
    assert guided_streams(scale=1.5, cls_scale=cls_scale) == (10 - 1.5 * 8, wanted)
    outside = dict(scale=1.5, cls_scale=cls_scale, interval=(0.6, 1.0))
    assert guided_streams(**outside) == (2, 2)


def test_a_scale_of_the_class_stream_without_effect_is_refused():
    with pytest.raises(ConfigError, match="cls_cfg_scale: 2.3 has no effect with cfg_scale=1"):
        build(GUIDANCES, dict(type="classifier-free", cls_scale=2.3))
    with pytest.raises(ConfigError, match="cls_cfg_scale: must be"):
        build(GUIDANCES, dict(type="classifier-free", scale=2, cls_scale=-1))
    guidance = build(GUIDANCES, dict(type="classifier-free", scale=2.0, cls_scale=2.3))
    model = guidance.guide(lambda x, t, cond: x, torch.tensor([2]), torch.tensor([10]))
    with pytest.raises(ConfigError, match="no stream beside the image"):
        model({"image": torch.ones(1, 1)}, torch.tensor(0.5))


def test_no_guidance_computes_no_null_branch():
    velocity, calls = guided(1.0)
    out = velocity({"image": torch.ones(2, 1)}, torch.tensor(0.5))["image"][:, 0].tolist()
    assert out == [2, 3] and calls[0][0] == [2, 3]


INTERVALS = [("0", "0.7"), ("0", "0.85"), ("0.2", "0.7"), ("0.3", "0.8"), ("0.9", "0.95")]


@pytest.mark.parametrize("steps", [20, 100, 250])
@pytest.mark.parametrize("interval", INTERVALS)
def test_guidance_includes_both_bounds(steps, interval):
    """In exact fractions: the float32 time of a sampler must not fall out of an interval that ends
    on it."""
    low, high = map(Fraction, interval)
    wanted = sum(low <= 1 - Fraction(i, steps) <= high for i in range(steps))
    velocity, calls = guided(2.0, (float(low), float(high)))
    start = {"image": torch.ones(2, 1)}
    run("euler", lambda x, t: {"image": 0 * velocity(x, t)["image"]}, start, steps=steps)
    assert sum(len(cond) == 4 for cond, _ in calls) == wanted and len(calls) == steps
    for bound in (float(low), float(high)):  # a time in double precision is judged alike
        velocity({"image": torch.ones(2, 1)}, torch.tensor(bound, dtype=torch.float64))
        assert len(calls[-1][0]) == 4


def test_conditions_are_joined_part_by_part():
    from ahpa.registry.contracts import TextCond

    cond = TextCond(torch.zeros(2, 3, 4), None)
    null = TextCond(torch.ones(2, 3, 4), None)
    both = joined(cond, null)
    assert isinstance(both, TextCond) and both.tokens.shape == (4, 3, 4) and both.pooled is None
    assert joined((torch.zeros(1), None), (torch.ones(1), None))[0].tolist() == [0, 1]
    assert joined(None, None) is None


@pytest.mark.parametrize(
    "interval",
    [(0.5, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1), (0.5,), (0, 0.5, 1), None, 0.7],
)
def test_intervals_that_are_refused(interval):
    with pytest.raises(ConfigError, match="cfg_interval"):
        guided(2.0, interval)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_refused(scale):
    with pytest.raises(ConfigError, match="cfg_scale"):
        guided(scale)
