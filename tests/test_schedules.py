"""Schedules against their formulas, exact resumption, and the contract."""

import math

import pytest
import torch
from support.registered import shipped

from ahpa.alignment.plateau import PlateauRelease
from ahpa.alignment.schedules import Constant, build_weight
from ahpa.registry import ALIGNMENTS, FLOWS, SCHEDULES, ConfigError, build
from ahpa.registry.contracts import LevelSpec, Losses, Progress, Schedule
from ahpa.registry.values import Term
from ahpa.testing.alignment import check_schedule, toy_view
from ahpa.testing.common import toy_geometry

SHAPES = {
    "Constant": (dict(value=0.3), lambda p: 0.3),
    "LinearSchedule": (
        dict(start=1.0, end=0.2, begin=0.2, until=0.6),
        lambda p: 1 - 0.8 * min(max((p - 0.2) / 0.4, 0), 1),
    ),
    "CosineSchedule": (dict(start=0.0, end=1.0), lambda p: (1 - math.cos(math.pi * p)) / 2),
    "StepSchedule": (dict(values={0: 1.0, 0.5: 0.1}), lambda p: 1.0 if p < 0.5 else 0.1),
    "EarlyStop": (dict(value=0.5, until=0.6), lambda p: 0.5 if p < 0.6 else 0.0),
    # SRA's code by epochs, with an epoch of 10 steps: 0.2 up to epoch 149, then
    # 2 * 0.1^((epoch - 149) / 1000 + 1)
    "DecadeDecay": (
        dict(value=0.2, begin=1490, decade=10_000),
        lambda p: 0.2 if 1000 * p < 149 else 2 * 0.1 ** ((1000 * p - 149) / 1000 + 1),
    ),
    # without observations there is no plateau: the latest ramp, from half of the run to .625 of it
    "PlateauRelease": (
        dict(value=0.5),
        lambda p: 0.5 * (1 + math.cos(math.pi * min(max((p - 0.5) / 0.125, 0), 1))) / 2,
    ),
}


@pytest.mark.parametrize("name", shipped(SCHEDULES))
@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_values(name, percent):
    options, wanted = SHAPES[name]
    weight = build_weight(dict(type=name, **options))
    found = weight(Progress(percent * 100, 10_000))
    tolerance = 1e-7 if name == "PlateauRelease" else 1e-9  # it returns a float32 tensor
    assert float(found) == pytest.approx(wanted(percent / 100), abs=tolerance)


@pytest.mark.parametrize("name", shipped(SCHEDULES))
def test_contract(name):
    check_schedule(dict(type=name, **SHAPES[name][0]))


def test_a_ramp_of_no_length_is_a_step():
    weight = build_weight(dict(type="LinearSchedule", start=1, end=0, begin=0.5, until=0.5))
    assert [weight(Progress(i, 10)) for i in (4, 5, 6)] == [1, 0, 0]


def test_hastes_stop_is_counted_in_steps():
    weight = build_weight(dict(type="EarlyStop", value=0.5, until_step=250_000))
    for total in (300_000, 4_000_000):
        assert weight(Progress(249_999, total)) == 0.5
        assert weight(Progress(250_000, total)) == 0.0


def test_build_weight():
    assert isinstance(build_weight(2), Constant) and build_weight(2)(Progress()) == 2.0
    schedule = Constant(value=1)
    assert build_weight(schedule) is schedule


MISTAKES = [
    (-1, "weight: must be a finite number of at least 0, got -1"),
    (math.nan, "weight: must be a finite number or a schedule, got nan"),
    (True, "weight"),
    ("1", "weight"),
    (None, "weight"),
    (dict(type="Constant", value=True), "value"),
    (dict(type="Constant", value=-1), "value"),
    (dict(type="LinearSchedule", start=1, end=0, begin=0.8, until=0.2), "begin"),
    (dict(type="LinearSchedule", start=1, end=0, until=2), "until"),
    (dict(type="StepSchedule", values={0.5: 1}), "of which the first is 0"),
    (dict(type="StepSchedule", values={}), "of which the first is 0"),
    (dict(type="StepSchedule", values={0: 1, 2: 0}), r"in \[0, 1\]"),
    (dict(type="EarlyStop", value=1, until=2), "until"),
    (dict(type="EarlyStop", value=1), "exactly one of until and until_step"),
    (dict(type="EarlyStop", value=1, until=0.5, until_step=3), "exactly one of"),
    (dict(type="EarlyStop", value=1, until_step=0.5), "until_step: must be a non-negative integer"),
    (dict(type="DecadeDecay", value=1, begin=0, decade=0), "decade"),
    (dict(type="PlateauRelease", value=1, fast_decay=0.9, slow_decay=0.9), "slow_decay"),
    (dict(type="PlateauRelease", value=1, ramp=0), "ramp"),
    (dict(type="PlateauRelease", value=1, latest=1.5), "latest"),
    (dict(type="PlateauRelease", value=1, tolerance=-1), "tolerance: .* of at least 0"),
]


@pytest.mark.parametrize(("cfg", "message"), MISTAKES, ids=str)
def test_mistakes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        build_weight(cfg)


# ---- PlateauRelease ----

T = 800
RELEASE = dict(value=0.5, fast_decay=0.9, slow_decay=0.98, tolerance=0.02, latest=None)


def curve(step):
    """Falls and levels out at 0.4."""
    return 0.4 + 0.6 * math.exp(-step / 40)


def losses_of(*values, name="main/cosine"):
    """One term for each value; the first is the observed one by default."""
    names = [name, "main/second", "main/third"]
    terms = [Term(n, torch.tensor(v)) for n, v in zip(names, values, strict=False)]
    return Losses(tuple(terms))


def written_out(
    values, *, fast_decay, slow_decay, tolerance, value, latest, warmup=1 / 8, ramp=1 / 8
):
    """Weight at every step, and s0: EMAs of the values; s0 = first step from T/8 on with
    (slow - fast) / slow < tolerance; value min(phi(s; s0), phi(s; latest T - S))."""

    def phi(s, a):
        return (1 + math.cos(math.pi * min(max((s - a) / (ramp * T), 0), 1))) / 2

    fast = slow = values[0]
    s0 = None
    weights = []
    for s in range(T):
        weight = 1.0 if s0 is None else phi(s, s0)
        if latest is not None:
            weight = min(weight, phi(s, latest * T - ramp * T))
        weights.append(value * weight)
        fast = fast_decay * fast + (1 - fast_decay) * values[s]
        slow = slow_decay * slow + (1 - slow_decay) * values[s]
        if s0 is None and s >= warmup * T and (slow - fast) / slow < tolerance:
            s0 = s
    return weights, s0


def run(schedule, start=0, end=T, value=curve):
    """Ask for the weight and observe, as in training."""
    found = []
    for step in range(start, end):
        progress = Progress(step, T)
        found.append(float(schedule(progress)))
        schedule.observe(losses_of(value(step)), progress)
    return found


@pytest.mark.parametrize("latest", [None, 0.625, 0.3], ids=str)
@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.3])
def test_plateau_release_written_out(latest, tolerance):
    options = {**RELEASE, "latest": latest, "tolerance": tolerance}
    schedule = PlateauRelease(**options)
    found = run(schedule)
    values = [float(torch.tensor(curve(s))) for s in range(T)]
    wanted, s0 = written_out(values, **options)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert int(schedule.current[2]) == s0 and T / 8 <= s0 < T
    assert found[0] == 0.5 and found[-1] == 0


def test_the_published_numbers():
    """T = 400K: S = 50K steps; without a plateau the weight is 1 up to 200K and 0 from 250K on."""
    schedule = PlateauRelease(value=1.0)
    at = {step: float(schedule(Progress(step, 400_000))) for step in (0, 200_000, 225_000, 250_000)}
    assert at == pytest.approx({0: 1, 200_000: 1, 225_000: 0.5, 250_000: 0}, abs=1e-6)
    assert (schedule.fast_decay, schedule.slow_decay, schedule.tolerance) == (0.999, 0.99995, 0.02)


def test_no_release_before_the_warm_up_and_none_without_a_plateau():
    flat = PlateauRelease(**RELEASE)
    found = run(flat, value=lambda step: 0.7)
    assert int(flat.current[2]) == T / 8, "a flat curve is released at the first possible step"
    assert found[: T // 8 + 1] == [0.5] * (T // 8 + 1) and found[T // 8 + 2] < 0.5
    falling = PlateauRelease(**RELEASE)
    assert set(run(falling, value=lambda step: 0.99**step)) == {0.5}


def test_plateau_release_resumes_exactly():
    whole = PlateauRelease(**RELEASE)
    wanted = run(whole)
    for stop in (1, 50, 150, 420):
        first = PlateauRelease(**RELEASE)
        before = run(first, 0, stop)
        second = PlateauRelease(**RELEASE)
        second.load_state_dict(first.state_dict())
        assert before + run(second, stop) == wanted
        for name, value in whole.state_dict().items():
            assert torch.equal(second.state_dict()[name], value), name


def test_the_state_is_saved_with_the_alignment():
    """In the middle of a run: an alignment restored from a state dict goes on to the bit."""
    geometry = toy_geometry()
    parts = dict(name="main", geometry=geometry, priors={"p": {"map": LevelSpec(6, 8)}})
    cfg = dict(
        type="Alignment",
        tap=1,
        source="p",
        router=dict(type="StaticRouter", groups="1"),
        weight=dict(type="PlateauRelease", value=0.5, fast_decay=0.5, slow_decay=0.6, warmup=0.1),
    )

    def make():
        torch.manual_seed(0)
        return build(ALIGNMENTS, cfg, flow=None, **parts)

    flow = build(FLOWS, dict(type="Flow"), geometry=geometry)

    def steps(alignment, start, end):
        found = []
        for step in range(start, end):
            view = toy_view(geometry, alignment.taps, flow=flow)
            draw = torch.Generator().manual_seed(step)
            features = {"p": {"map": torch.randn(2, 6, 8, 8, generator=draw)}}
            found.append(alignment(view, features, Progress(step, 40)).total.detach())
        return torch.stack(found)

    whole, first, second = make(), make(), make()
    wanted = steps(whole, 0, 20)
    before = steps(first, 0, 9)
    state = first.state_dict()
    assert {"weight.current", "weight.previous", "weight.batch", "weight.step"} <= set(state)
    second.load_state_dict(state)
    assert torch.equal(torch.cat([before, steps(second, 9, 20)]), wanted)
    assert wanted[-1] < wanted[0] / 2, "the release has begun"


def test_micro_batches_of_a_step_count_once():
    """Their mean is observed, and the weight does not change within a step."""
    one, several = PlateauRelease(**RELEASE), PlateauRelease(**RELEASE)
    for step in range(300):
        progress = Progress(step, T)
        one.observe(losses_of(curve(step)), progress)
        weights = set()
        for offset in (-0.125, 0.125, 0.25, -0.25):
            weights.add(float(several(progress)))
            several.observe(losses_of(curve(step) + offset), progress)
        assert len(weights) == 1
        torch.testing.assert_close(several.current, one.current, rtol=1e-6, atol=0)
    assert int(several.current[3]) == 300


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_skipped(bad):
    clean, dirty = PlateauRelease(**RELEASE), PlateauRelease(**RELEASE)
    for step in range(300):
        progress = Progress(step, T)
        dirty.observe(losses_of(bad if step % 7 == 0 else curve(step)), progress)
        if step % 7:
            clean.observe(losses_of(curve(step)), progress)
    assert torch.equal(dirty.current, clean.current)


def test_which_criterion_is_observed():
    first = PlateauRelease(**RELEASE)
    second = PlateauRelease(**RELEASE, criterion="second")
    for schedule in (first, second):
        schedule.observe(losses_of(0.5, 0.25), Progress(0, T))
    assert first.current[0] == 0.5 and second.current[0] == 0.25
    with pytest.raises(ConfigError, match="no term 'third'.*cosine, second"):
        PlateauRelease(**RELEASE, criterion="third").observe(losses_of(0.5, 0.25), Progress(0, T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_share_their_mean(monkeypatch, dtype):
    """Two ranks with the values 0.5 and 0.75; the loss itself stays as it is."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(0.75))
    schedule, value = PlateauRelease(**RELEASE), torch.tensor(0.5, dtype=dtype)
    schedule.observe(Losses((Term("main/cosine", value),)), Progress(0, T))
    assert schedule.current[:2].tolist() == [0.625, 0.625] and value == 0.5


def test_the_weight_does_not_change_the_dtype_of_the_loss():
    weight = PlateauRelease(**RELEASE)(Progress(0, T))
    assert weight.dtype == torch.float32 and not weight.requires_grad
    value = torch.tensor(0.5, requires_grad=True)
    assert Losses((Term("main/cosine", value, weight),)).total.dtype == torch.float32


# ---- the check ----


class Fading(Schedule):
    """Falls with the number of observations; its subclasses break one thing each."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, progress):
        return 1 / (1 + self.count)

    def observe(self, losses, progress):
        self.count += 1


class Forgetful(Schedule):
    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, progress):
        return 1 / (1 + self.count)

    def observe(self, losses, progress):
        self.count += 1


class Negative(Fading):
    def forward(self, progress):
        return -1.0


class Impatient(Fading):
    def forward(self, progress):
        self.count += 1
        return super().forward(progress)


class Learned(Fading):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))


class Wide(Fading):
    def forward(self, progress):
        return torch.ones(1)


class WithGradient(Fading):
    def forward(self, progress):
        return torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Forgetful, "does not resume exactly"),
        (Negative, "the weight is -1"),
        (Impatient, "asked for twice"),
        (Learned, "has parameters"),
        (Wide, "expected 0-d"),
        (WithGradient, "carries a gradient"),
    ],
)
def test_the_check_finds_a_broken_schedule(broken, message):
    check_schedule(Fading())
    with pytest.raises(AssertionError, match=message):
        check_schedule(broken())
