"""The discrete path, the hybrid loss and the samplers of DDPM and DDIM against references written
out in numpy, and the guided channels of DiT."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ahpa.registry import FLOW_LOSSES, FLOWS, GUIDANCES, PATHS, SAMPLERS, ConfigError, build
from ahpa.registry.contracts import BackboneOutput, Clean, Condition, Noised, TargetView
from ahpa.testing.common import toy_geometry
from ahpa.testing.losses import check_flow_loss

GEOMETRY = toy_geometry(resolution=32, out_channels=8)  # latents [4, 4, 4]
BETAS = np.linspace(
    1e-4, 0.02, 1000
)  # the references below use numpy in float64 and nothing of ahpa
ABAR = np.array([np.prod(1 - BETAS[: i + 1]) for i in range(1000)])


def path_of(**options):
    return build(PATHS, dict(type="DiscretePath", **options))


def flow_of(**options):
    return build(FLOWS, {"type": "DiscreteFlow", **options}, geometry=GEOMETRY)


def loss_of(flow=None, geometry=GEOMETRY, **options):
    flow = flow or flow_of()
    return build(FLOW_LOSSES, dict(type="HybridLoss", **options), geometry=geometry, flow=flow)


def normal_pdf(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


# ---- path and flow -----------------------------------------------------------------------------


def test_alpha_and_sigma_are_the_products_written_out():
    t = torch.arange(1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(path_of().alpha(t), torch.from_numpy(np.sqrt(ABAR)))
    torch.testing.assert_close(path_of().sigma(t), torch.from_numpy(np.sqrt(1 - ABAR)))
    assert ABAR[-1] == pytest.approx(
        4.04e-5, rel=0.01
    )  # the known end of DDPM's schedule: almost pure noise


def test_a_time_is_the_nearest_step_and_a_step_comes_back_exactly():
    path = path_of()
    index = torch.arange(1000)
    assert path.time(index).dtype == torch.float32 and torch.equal(
        path.index(path.time(index)), index
    )
    times = torch.tensor([0.0, 0.0004, 0.0006, 0.5, 0.9994, 0.9996, 1.0])
    assert path.index(times).tolist() == [0, 0, 1, 500, 999, 999, 999]
    assert path_of(steps=10).index(torch.tensor(0.31)).item() == 3


def test_noising_and_its_inverse():
    path, t = path_of(), torch.tensor([0.0, 0.25, 0.999], dtype=torch.float64)
    x0, eps = torch.randn(
        2, 3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    x, target = path.mix(x0, eps, t)
    for i, index in enumerate((0, 250, 999)):
        torch.testing.assert_close(
            x[i], math.sqrt(ABAR[index]) * x0[i] + math.sqrt(1 - ABAR[index]) * eps[i]
        )
    assert torch.equal(target, eps)
    torch.testing.assert_close(path.to_data(x, eps, t), x0)
    assert torch.equal(path.to_noise(x, eps, t), eps)
    torch.testing.assert_close(path.score(x, eps, t)[1], -eps[1] / math.sqrt(1 - ABAR[250]))


def test_the_flow_draws_steps_uniformly_from_the_generator_alone():
    flow = flow_of(path=dict(type="DiscretePath", steps=20))
    data = {"image": torch.randn(4000, 1).half(), "cls": torch.randn(4000, 2)}
    noisy, again = (flow.sample(data, torch.Generator().manual_seed(3)) for _ in range(2))
    steps = noisy.t * 20
    assert noisy.t.dtype == torch.float32 and torch.equal(noisy.t, again.t)
    torch.testing.assert_close(steps, steps.round())
    counts = torch.bincount(steps.round().long())
    assert len(counts) == 20 and counts.min() > 140 and counts.max() < 270  # 200 expected, sd 14
    for name, x0 in data.items():
        assert (
            torch.equal(noisy.target[name], noisy.noise[name])
            and noisy.x[name].dtype == torch.float32
        )
        assert torch.equal(noisy.x[name], again.x[name])
        assert torch.equal(noisy.x[name], flow.path.mix(x0.float(), noisy.noise[name], noisy.t)[0])


@pytest.mark.parametrize("index", [1, 2, 500, 999])
def test_the_posterior_is_bayes_rule_on_a_grid(index):
    """q(x_{i-1} | x_i, x0) is proportional to q(x_i | x_{i-1}) q(x_{i-1} | x0): its moments by
    brute force."""
    schedule, x0 = path_of().schedule, 0.7
    x = math.sqrt(ABAR[index]) * x0 - 1.3 * math.sqrt(1 - ABAR[index])
    before = ABAR[index - 1]
    grid = np.linspace(-8, 8, 800_001)
    mass = normal_pdf(x, math.sqrt(1 - BETAS[index]) * grid, BETAS[index])
    mass = mass * normal_pdf(grid, math.sqrt(before) * x0, 1 - before)
    mass /= mass.sum()
    mean = float((mass * grid).sum())
    variance = float((mass * (grid - mean) ** 2).sum())
    at, one = torch.tensor(index), torch.ones(1, dtype=torch.float64)
    assert schedule.posterior_mean(x0 * one, x * one, at).item() == pytest.approx(mean, rel=1e-5)
    assert schedule.over("log_small", at, one).exp().item() == pytest.approx(variance, rel=1e-3)
    assert schedule.log_variance(-one, at).item() == pytest.approx(math.log(variance), abs=1e-3)
    assert schedule.log_variance(one, at).item() == pytest.approx(math.log(BETAS[index]))
    assert schedule.log_variance(0 * one, at).item() == pytest.approx(
        (math.log(variance) + math.log(BETAS[index])) / 2, abs=1e-3
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 250, 1000])
def test_respacing_keeps_abar_at_the_kept_steps(steps):
    kept, schedule = path_of().respaced(steps)
    assert len(kept) == steps == schedule.steps and kept[-1] == 999 and (kept.diff() > 0).all()
    if steps > 1:
        assert kept[0] == 0
        wanted = [round(i * 999 / (steps - 1)) for i in range(steps)]  # evenly spaced and rounded
        assert kept.tolist() == wanted
    torch.testing.assert_close(schedule.tables["abar"], torch.from_numpy(ABAR)[kept])
    if steps == 1000:
        torch.testing.assert_close(schedule.tables["betas"], torch.from_numpy(BETAS))
    assert all(value.isfinite().all() for value in schedule.tables.values())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=1), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(steps=True), "steps"),
        (dict(beta_start=0), "beta_start"),
        (dict(beta_start=0.03), "beta_start"),
        (dict(beta_end=1), "beta_end"),
        (dict(beta_end=float("nan")), "beta_end"),
    ],
    ids=str,
)
def test_paths_that_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        path_of(**options)


def test_paths_and_flows_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="DiscreteFlow needs a DiscretePath, got LinearPath"):
        flow_of(path=dict(type="LinearPath"))
    with pytest.raises(ConfigError, match="DiscretePath fits DiscreteFlow"):
        flow_of(type="Flow", path=dict(type="DiscretePath"))


# ---- loss --------------------------------------------------------------------------------------


def bits_written_out(x0, x, eps, v, index):
    """The bound's term of one sample, number by number, in float64: arXiv:2102.09672 eq. 4-7, 15,
    DDPM eq. 7 and 13."""
    beta, abar = BETAS[index], ABAR[index]
    before = ABAR[index - 1] if index else 1.0
    small = BETAS * (1 - np.append(1.0, ABAR[:-1])) / (1 - ABAR)
    log_small = math.log(small[max(index, 1)])
    phi = lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2)))  # noqa: E731
    nats = []
    for d, s, e, w in zip(x0.flatten(), x.flatten(), eps.flatten(), v.flatten(), strict=True):
        guess = (s - math.sqrt(1 - abar) * e) / math.sqrt(abar)
        mean, true = (
            (math.sqrt(before) * beta * z + math.sqrt(1 - beta) * (1 - before) * s) / (1 - abar)
            for z in (guess, d)
        )
        log_variance = (w + 1) / 2 * math.log(beta) + (1 - w) / 2 * log_small
        if index:
            first, second = math.exp(0.5 * log_small), math.exp(0.5 * log_variance)
            nats.append(
                math.log(second / first) + (first**2 + (true - mean) ** 2) / (2 * second**2) - 0.5
            )
        else:
            sd = math.exp(0.5 * log_variance)
            high = phi((d + 1 / 255 - mean) / sd) if d <= 0.999 else 1.0
            low = phi((d - 1 / 255 - mean) / sd) if d >= -0.999 else 0.0
            nats.append(-math.log(max(high - low, 1e-12)))
    return np.mean(nats) / math.log(2)


def hybrid_view(seed=0, error=0.01, flow=None):
    """A batch with the steps 0, 1, 37, 500 and 999, values beyond [-1, 1] among its data, and a
    prediction near eps."""
    flow = flow or flow_of()
    stream = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=stream)  # noqa: E731
    index = torch.tensor([0, 1, 37, 500, 999])
    data, eps = {"image": draw(5, 4, 4, 4)}, {"image": draw(5, 4, 4, 4)}
    t = index.float() / 1000
    mixed = flow.path.mix(data["image"], eps["image"], t)[0]
    pred = torch.cat(
        [eps["image"] + error * draw(5, 4, 4, 4), 0.5 * draw(5, 4, 4, 4)], 1
    ).requires_grad_()
    noised = Noised(x={"image": mixed}, t=t, target=eps, data=data, noise=eps, path=flow.path)
    out = BackboneOutput({"image": pred}, {}, 0, (2, 2))
    return TargetView(Clean(data), noised, Condition(None), out), index, pred


def values(losses):
    """{name: value} of the terms, unweighted."""
    return {term.name: term.value for term in losses.terms}


@pytest.mark.parametrize("error", [0.01, 0.5])
def test_the_hybrid_loss_written_out(error):
    view, index, pred = hybrid_view(error=error)
    loss = loss_of()
    out = values(loss(view))
    parts = (view.noised.data, view.noised.x, view.noised.target)
    x0, x, target = (part["image"].double().numpy() for part in parts)
    eps, v = pred.detach().double().numpy()[:, :4], pred.detach().double().numpy()[:, 4:]
    assert list(out) == ["flow", "flow/vlb"]
    assert out["flow"].item() == pytest.approx(np.mean((eps - target) ** 2), rel=1e-5)
    bits = [bits_written_out(x0[i], x[i], eps[i], v[i], int(index[i])) for i in range(5)]
    assert np.abs(x0[0]).max() > 1, "the open outermost bins are part of this test"
    noised = view.noised
    each = loss.bound(noised.data["image"], noised.x["image"], noised.t, pred[:, :4], pred[:, 4:])
    for value, wanted in zip(each.tolist(), bits, strict=True):
        assert value == pytest.approx(wanted, rel=2e-3, abs=2e-5)
    assert out["flow/vlb"].item() == pytest.approx(np.mean(bits), rel=2e-3)


def test_the_weight_of_the_bound_is_lambda_times_the_steps():
    bare = loss_of()(hybrid_view()[0])
    assert [term.weight for term in bare.terms] == [1.0, 1.0]  # 0.001 T = 1 for 1000 steps
    changed = loss_of(vlb_weight=0.003, weights=dict(image=2.0))(hybrid_view()[0])
    assert [term.weight for term in changed.terms] == [2.0, 3.0]
    for first, second in zip(bare.terms, changed.terms, strict=True):
        assert torch.equal(first.value, second.value)
    total = bare.terms[0].value * 2 + bare.terms[1].value * 3
    torch.testing.assert_close(changed.total, total)
    flow = flow_of(path=dict(type="DiscretePath", steps=250))
    short = loss_of(flow)(hybrid_view(flow=flow)[0])
    assert short.terms[1].weight == 0.25


@pytest.mark.parametrize(
    "term, trained, still",
    [("flow", slice(0, 4), slice(4, 8)), ("flow/vlb", slice(4, 8), slice(0, 4))],
    ids=str,
)
def test_each_term_trains_its_own_half(term, trained, still):
    view, _, pred = hybrid_view(error=0.1)
    values(loss_of()(view))[term].backward()
    assert pred.grad.isfinite().all() and (pred.grad[:, still] == 0).all()
    assert (pred.grad[1:, trained] != 0).any(1).all(), f"{term} must reach its own channels"


def test_the_gradient_of_the_variance_is_the_written_out_ones():
    view, index, pred = hybrid_view(error=0.1)
    values(loss_of()(view))["flow/vlb"].backward()
    noised, made = view.noised, pred.detach()
    arrays = [noised.data["image"], noised.x["image"], made[:, :4], made[:, 4:]]
    x0, x, eps, v = (part.double().numpy() for part in arrays)
    inside = np.argwhere(np.abs(x0[0]) < 0.9)[0]  # at step 0, a closed bin
    for i, place in [(0, tuple(inside)), (1, (0, 0, 0)), (2, (1, 2, 3)), (4, (3, 3, 3))]:
        shifts = []
        for shift in (1e-4, -1e-4):
            shifted = v[i].copy()
            shifted[place] += shift
            shifts.append(bits_written_out(x0[i], x[i], eps[i], shifted, int(index[i])))
        slope = (shifts[0] - shifts[1]) / 2e-4 / 5
        assert pred.grad[i, 4:][place].item() == pytest.approx(slope, rel=5e-3, abs=1e-8)


def test_the_bound_is_least_at_the_true_variance():
    """For the true eps, KL >= 0 with 0 at v = -1, which is beta_tilde."""
    noised, loss = hybrid_view()[0].noised, loss_of()
    exact, ones = noised.noise["image"], torch.ones(5, 4, 4, 4)

    def part(v):
        return loss.bound(noised.data["image"], noised.x["image"], noised.t, exact, v)[1:]

    assert part(-ones).abs().max() < 1e-4
    assert (part(0 * ones)[:2] > part(-ones)[:2]).all()
    assert (part(ones)[:2] > part(0 * ones)[:2]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_hybrid_loss_is_computed_in_full_precision(dtype):
    full = values(loss_of()(hybrid_view()[0]))
    with torch.autocast("cpu", dtype=dtype):
        out = values(loss_of()(hybrid_view()[0]))
    for name, value in full.items():
        assert out[name].dtype == torch.float32 and torch.equal(out[name], value)


def test_the_contract_of_the_hybrid_loss():
    streams = toy_geometry(out_channels=8, streams={"cls": (7,)})
    flow = dict(type="DiscreteFlow")
    check_flow_loss(dict(type="HybridLoss"), flow=flow, geometry=streams)
    flow = dict(type="DiscreteFlow", views=2)
    check_flow_loss(dict(type="HybridLoss"), flow=flow, geometry=GEOMETRY)


def test_parts_that_do_not_fit_the_hybrid_loss():
    with pytest.raises(ConfigError, match="DiscreteFlow.*ContinuousFlow provides a velocity"):
        loss_of(flow_of(type="Flow"))
    narrow = replace(GEOMETRY, out_channels=4)
    with pytest.raises(ConfigError, match="learn_sigma=True.*8 channels.*4"):
        loss_of(geometry=narrow)
    with pytest.raises(ConfigError, match="vlb_weight"):
        loss_of(vlb_weight=-1)
    with pytest.raises(ConfigError, match="'imgae' is not a stream.*image"):
        loss_of(weights=dict(imgae=1.0))


# ---- samplers ----------------------------------------------------------------------------------


def sampler(name):
    return build(SAMPLERS, dict(type=name)).sample


def exact_noise(x, t, mean, std):
    """E[eps | x] for data N(mean, std^2): sigma (x - alpha mean) / (alpha^2 std^2 + sigma^2)."""
    abar = ABAR[round(float(t) * 1000)]
    return math.sqrt(1 - abar) * (x - math.sqrt(abar) * mean) / (abar * std**2 + 1 - abar)


def draw(name, steps, *, mean, std, v=None, count=20_000):
    """From noise with the exact eps of a Gaussian -> (samples, the times of the model's calls)."""
    stream, calls = torch.Generator().manual_seed(1), []
    normal = lambda: torch.randn(count, 1, generator=stream, dtype=torch.float64)  # noqa: E731

    def model(x, t):
        assert t.ndim == 0 and t.dtype == torch.float32
        calls.append(float(t))
        eps = exact_noise(x["image"], t, mean, std)
        return {"image": eps if v is None else torch.cat([eps, torch.full_like(eps, v)], 1)}

    start = normal()
    out = sampler(name)(
        model, {"image": start}, steps=steps, path=path_of(), noise=lambda x: {"image": normal()}
    )
    assert out["image"].shape == (count, 1)
    return out["image"], calls


def ancestral_moments(steps, mean, std, v):
    """Mean and variance at the end of the same chain, by its linear recursion in float64."""
    kept = [round(i * 999 / (steps - 1)) for i in range(steps)]
    m, var = 0.0, 1.0
    for i in reversed(range(steps)):
        abar, before = ABAR[kept[i]], ABAR[kept[i - 1]] if i else 1.0
        alpha = abar / before
        gain = math.sqrt(1 - abar) / (abar * std**2 + 1 - abar)  # eps = gain (x - sqrt(abar) mean)
        slope = (1 - (1 - alpha) / math.sqrt(1 - abar) * gain) / math.sqrt(alpha)  # DDPM eq. 11
        shift = (1 - alpha) / math.sqrt(1 - abar) * gain * math.sqrt(abar) * mean / math.sqrt(alpha)
        m, var = slope * m + shift, slope**2 * var
        if i:
            small = (1 - before) / (1 - abar) * (1 - alpha)
            var += small ** ((1 - v) / 2) * (1 - alpha) ** ((1 + v) / 2)
    return m, var


@pytest.mark.parametrize(
    "steps, v", [(250, None), (250, -1.0), (50, 0.3), (50, 1.0), (10, None)], ids=str
)
def test_the_ancestral_sampler_on_gaussian_data(steps, v):
    out, calls = draw("ddpm", steps, mean=0.8, std=0.6, v=v)
    m, var = ancestral_moments(steps, 0.8, 0.6, -1.0 if v is None else v)
    assert float(out.mean()) == pytest.approx(m, abs=0.015) and float(out.var()) == pytest.approx(
        var, rel=0.04
    )
    if steps == 250:  # and many steps end in the data
        assert m == pytest.approx(0.8, abs=0.01) and math.sqrt(var) == pytest.approx(0.6, rel=0.03)
    assert (
        len(calls) == steps
        and calls[0] == pytest.approx(0.999)
        and calls[-1] == 0.0
        and calls == sorted(calls)[::-1]
    )


def test_the_variance_of_a_step_is_the_learned_one():
    """Two steps from a known state: the noise of the first is scaled by exp(log variance / 2),
    the last adds none."""
    path, x = path_of(), torch.tensor([[0.3, -0.7]], dtype=torch.float64).reshape(1, 2, 1, 1)
    v = torch.tensor([0.5, -0.25], dtype=torch.float64).reshape(1, 2, 1, 1)
    kick, states = torch.tensor([1.5, -2.0], dtype=torch.float64).reshape(1, 2, 1, 1), []

    def model(s, t):
        states.append(s["image"])
        return {"image": torch.cat([0.2 * s["image"], v], 1)}

    out = sampler("ddpm")(model, {"image": x}, steps=2, path=path, noise=lambda s: {"image": kick})[
        "image"
    ]
    beta = 1 - ABAR[999] / ABAR[0]
    small = (1 - ABAR[0]) / (1 - ABAR[999]) * beta
    deviation = torch.exp(0.5 * ((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small)))
    mean = (x - beta / math.sqrt(1 - ABAR[999]) * 0.2 * x) / math.sqrt(1 - beta)  # DDPM eq. 11
    torch.testing.assert_close(states[1], mean + deviation * kick)
    torch.testing.assert_close(
        out, (1 - math.sqrt(BETAS[0]) * 0.2) / math.sqrt(1 - BETAS[0]) * states[1]
    )


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_point_mass_is_reached_exactly(name, steps):
    """The last step takes x0 as it is (abar_{-1} = 1), which is the point whatever came before."""
    out, _ = draw(name, steps, mean=-1.3, std=0.0, count=50)
    torch.testing.assert_close(out, torch.full_like(out, -1.3))


def test_ddim_is_deterministic_and_follows_its_ode():
    first, again = (draw("ddim", 20, mean=0.8, std=0.6, count=500)[0] for _ in range(2))
    assert torch.equal(first, again)
    stream = torch.Generator().manual_seed(1)
    start = torch.randn(500, 1, generator=stream, dtype=torch.float64)
    errors = [
        float((draw("ddim", n, mean=0.8, std=0.6, count=500)[0] - (0.8 + 0.6 * start)).abs().max())
        for n in (20, 500)
    ]
    assert errors[1] < 0.02 < errors[0]  # the ODE maps N(0, 1) to the data by a line
    x, kept = 0.9, [0, 500, 999]
    for index, before in (
        (999, ABAR[500]),
        (500, ABAR[0]),
        (0, 1.0),
    ):  # by hand (arXiv:2010.02502 eq. 12)
        eps = 0.3 * x
        x = (
            math.sqrt(before) * (x - math.sqrt(1 - ABAR[index]) * eps) / math.sqrt(ABAR[index])
            + math.sqrt(1 - before) * eps
        )
    start = {"a": torch.full((1, 1), 0.9, dtype=torch.float64)}
    out = sampler("ddim")(
        lambda s, t: {"a": 0.3 * s["a"]}, start, steps=3, path=path_of(), noise=None
    )
    assert path_of().respaced(3)[0].tolist() == kept and out["a"].item() == pytest.approx(
        x, rel=1e-9
    )


def test_latents_are_not_clipped():
    for name in ("ddpm", "ddim"):
        out, _ = draw(name, 20, mean=7.0, std=0.0, count=10)
        torch.testing.assert_close(out, torch.full_like(out, 7.0))


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_calls_that_are_refused(name):
    x = {"image": torch.zeros(1, 4, 2, 2)}
    run, keep = sampler(name), lambda s, t: s
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"{name}.*1 and 1000.*{steps}"):
            run(keep, x, steps=steps, path=path_of(), noise=lambda s: s)
    with pytest.raises(ValueError, match="DiscretePath, got LinearPath"):
        run(keep, x, steps=3, path=build(PATHS, dict(type="LinearPath")), noise=lambda s: s)
    with pytest.raises(ValueError, match="3 channels; 4 or 8"):
        run(
            lambda s, t: {"image": s["image"][:, :3]}, x, steps=3, path=path_of(), noise=lambda s: s
        )


# ---- guidance ----------------------------------------------------------------------------------


def guided(model, channels):
    guidance = build(GUIDANCES, dict(type="classifier-free", scale=1.5, channels=channels))
    return guidance.guide(model, torch.tensor([2]), torch.tensor([10]))


@pytest.mark.parametrize("channels, count", [(None, 4), (3, 3), (1, 1), (4, 4)])
@pytest.mark.parametrize("predicted", [4, 8])
def test_guided_channels(channels, count, predicted):
    """The model says its condition in every channel: 2 for the class, 10 for null; the others keep
    the class's."""

    def model(x, t, cond):
        return {"image": cond.float()[:, None, None, None].expand(-1, predicted, 2, 2)}

    velocity = guided(model, channels)
    out = velocity({"image": torch.zeros(1, 4, 2, 2)}, torch.tensor(0.5))["image"]
    assert out[0, :, 0, 0].tolist() == [10 + 1.5 * (2 - 10)] * count + [2.0] * (predicted - count)


def test_channels_limit_the_image_alone():
    def model(x, t, cond):
        return {k: cond.float().reshape(-1, 1).expand(-1, v.shape[1]) for k, v in x.items()}

    velocity = guided(model, 2)
    out = velocity({"image": torch.zeros(1, 4), "cls": torch.zeros(1, 5)}, torch.tensor(0.5))
    assert out["image"][0].tolist() == [-2, -2, 2, 2] and out["cls"][0].tolist() == [-2] * 5


@pytest.mark.parametrize("channels", [0, -1, 2.0, True, 5])
def test_channels_that_are_refused(channels):
    model = lambda x, t, cond: {"image": torch.zeros(2, 8, 2, 2)}  # noqa: E731
    with pytest.raises(ConfigError, match="cfg_channels"):
        velocity = guided(model, channels)
        velocity({"image": torch.zeros(1, 4, 2, 2)}, torch.tensor(0.5))
