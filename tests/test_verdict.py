"""Verdicts on methods: intervals against scipy, errors and power by simulation, reading results."""

import csv
import json
import math
import re
import shlex

import numpy as np
import pytest
from scipy import stats
from support.runs import ROOT

from ahpa.cli.main import main
from ahpa.evaluation import verdict
from ahpa.evaluation.protocol import EvaluationResult
from ahpa.registry import METRICS, ConfigError, UserError, build

PAIRS = 20_000  # simulated comparisons
FIELD = math.hypot(verdict.TRAINING_SPREAD, verdict.SAMPLING_SPREAD)
ROUNDS = range(verdict.FEWEST, verdict.MOST + 1)


def simulated(rng, effect=0.0, *, spread=1.0, sampling_seeds=1, seeds=verdict.MOST, pairs=PAIRS):
    """Means over sampling seeds of two methods on the log scale, [pairs, seeds] each, with the
    field's spreads; the second method's is `spread` times as large."""

    def method(scale):
        training = rng.normal(0, scale * verdict.TRAINING_SPREAD, (pairs, seeds))
        noise = rng.normal(0, scale * verdict.SAMPLING_SPREAD, (sampling_seeds, pairs, seeds))
        return training + noise.mean(0)

    return method(1.0), method(spread) + math.log1p(effect)


def ever_decided(first, second, level, rounds=ROUNDS):
    decided = np.zeros(len(first), bool)
    for count in rounds:
        decided |= verdict.welch(first[:, :count], second[:, :count]).probability() < level
    return decided


def bounds(hits):
    """Rate of hits, less and plus two standard errors."""
    error = 2 * math.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
    return hits.mean() - error, hits.mean() + error


# ---- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 9), (30, 5)])
def test_the_interval_is_welchs(n, m):
    rng = np.random.default_rng(n)
    first, second = rng.normal(0, 1, (6, n)), rng.normal(0.5, 3, (6, m))
    found = verdict.welch(first, second)
    expected = stats.ttest_ind(second, first, axis=-1, equal_var=False)
    assert found.difference / found.error == pytest.approx(expected.statistic, rel=1e-12)
    assert found.freedom == pytest.approx(expected.df, rel=1e-12)
    assert found.probability() == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.993)
    assert found.difference - found.margin(0.007) == pytest.approx(low, rel=1e-9)
    assert found.difference + found.margin(0.007) == pytest.approx(high, rel=1e-9)


def test_the_power_is_that_of_a_noncentral_t():
    seeds = np.arange(3, 25)
    found = verdict.power(0.03, 0.014, 0.014, seeds, 0.01)
    freedom, shift = 2 * (seeds - 1), 0.03 / (0.014 * np.sqrt(2 / seeds))
    bound = stats.t.ppf(0.995, freedom)
    # SciPy 1.11's special function is good to 5e-6, later ones to 1e-9.
    assert found == pytest.approx(stats.nct.sf(bound, freedom, shift), abs=1e-5)
    far = np.linspace(0.01, 10, 50)[:, None]  # where the noncentral t itself may be NaN
    assert (
        np.diff(verdict.power(far, 0.01, 0.001, np.array([3, 24]), 0.0004), axis=0) > -1e-6
    ).all()
    assert verdict.power(10, 0.01, 0.001, np.array([3, 24]), 0.0004) == pytest.approx(1, abs=1e-3)


def test_the_power_is_what_a_simulation_finds():
    first, second = simulated(np.random.default_rng(1), 0.03, spread=2.0, seeds=9)
    low, high = bounds(verdict.welch(first, second).probability() < 0.02)
    expected = verdict.power(math.log1p(0.03), FIELD, 2 * FIELD, np.array(9), 0.02)
    assert low - 0.01 < expected < high + 0.01


def test_the_spreads_are_those_of_an_analysis_of_variance():
    values = {0: [1.0, 1.2, 0.9], 3: [2.0, 2.1], 7: [1.5]}
    found = verdict.summarise("m", {s: dict(enumerate(v)) for s, v in values.items()}, "absolute")
    means = [sum(v) / len(v) for v in values.values()]
    grand = sum(means) / 3
    between = sum((mean - grand) ** 2 for mean in means) / 2
    within = sum((x - sum(v) / len(v)) ** 2 for v in values.values() for x in v) / (2 + 1 + 0)
    training = between - within * (1 / 3 + 1 / 2 + 1) / 3
    assert (found.training_seeds, found.results, found.mean) == (3, 6, pytest.approx(grand))
    assert found.spread == pytest.approx(between**0.5)
    assert found.sampling_spread == pytest.approx(within**0.5)
    assert found.training_spread == pytest.approx(training**0.5)


def test_both_spreads_are_recovered():
    rng = np.random.default_rng(2)
    logs = rng.normal(0, 0.013, (3000, 1)) + rng.normal(0, 0.004, (3000, 3))
    seeds = {s: dict(enumerate(row)) for s, row in enumerate((20 * np.exp(logs)).tolist())}
    found = verdict.summarise("m", seeds)
    assert found.training_spread == pytest.approx(0.013, rel=0.05)
    assert found.sampling_spread == pytest.approx(0.004, rel=0.05)
    assert found.mean == pytest.approx(20, rel=1e-3)


# ---- false verdicts and power, with the field's spreads -----------------------------------------


@pytest.mark.parametrize("sampling_seeds", [1, 3])
def test_false_verdicts_stay_below_5_percent_with_a_look_at_every_seed(sampling_seeds):
    first, second = simulated(np.random.default_rng(3), sampling_seeds=sampling_seeds)
    assert bounds(ever_decided(first, second, verdict.look_level(0.05)))[1] <= 0.05


@pytest.mark.parametrize("count", [1, 4, 10])
def test_false_verdicts_with_spreads_that_differ_three_times(count):
    """Of one of several comparisons; each may err with 5 % / count."""
    level = 0.05 / count
    first, second = simulated(np.random.default_rng(4), spread=3.0)
    assert bounds(ever_decided(first, second, verdict.look_level(level)))[0] <= level


def test_false_verdicts_over_several_methods_against_one():
    rng = np.random.default_rng(5)
    level = verdict.look_level(0.05 / 3)
    first, _ = simulated(rng)
    others = [simulated(rng)[1] for _ in range(3)]
    decided = np.any([ever_decided(first, other, level) for other in others], axis=0)
    assert bounds(decided)[1] <= 0.05


def test_looking_at_every_seed_without_a_rule_errs_far_more_often():
    first, second = simulated(np.random.default_rng(6))
    assert bounds(ever_decided(first, second, 0.05))[0] > 0.15


def one_run_each(**options):
    methods = {"a": {0: {0: 20.0}}, "b": {0: {0: 19.0}}}
    return verdict.compare_methods(methods, **options)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("effect", [0.03, -0.03 / 1.03])
def test_the_recommended_seeds_find_a_difference_of_3_percent(effect, planned):
    """What the tool says of one run each, then that many; a single look."""
    level = 0.05 if planned else verdict.look_level(0.05)
    told = one_run_each(planned=5 if planned else None)
    needed = told.verdicts[0].needed_effect
    assert (told.look, needed) == (level, 5 if planned else 8)
    rng = np.random.default_rng(7)
    first, second = simulated(rng, effect, seeds=needed)
    found = verdict.welch(first, second)
    right = (found.probability() < level) & (np.sign(found.difference) == np.sign(effect))
    assert bounds(right)[0] >= 0.8
    same = verdict.welch(*simulated(rng, seeds=needed)).probability() < level
    assert bounds(same)[1] <= (0.055 if planned else 0.01)


def follow_advice(first, second):
    """Start with 3 seeds, look, train what is advised for 3 %, look, ... -> who got a verdict."""
    level, rounds = verdict.look_level(0.05), np.array(ROUNDS)
    decided, now = np.zeros(len(first), bool), np.full(len(first), 3)
    going = np.ones(len(first), bool)
    for count in ROUNDS:
        here = np.flatnonzero(going & (now == count))
        found = first[here, :count], second[here, :count]
        decided[here] = verdict.welch(*found).probability() < level
        spread = np.sqrt((found[0].var(1, ddof=1) + found[1].var(1, ddof=1)) / 2)[:, None]
        enough = verdict.power(math.log1p(0.03), spread, spread, rounds, level) >= verdict.POWER
        advised = np.where(enough.any(1), rounds[enough.argmax(1)], 0)
        going[here] = ~decided[here] & (advised > count)
        now[here] = advised
    return decided


def test_whoever_follows_the_advice_gets_a_verdict_and_rarely_a_false_one():
    rng = np.random.default_rng(8)
    assert bounds(follow_advice(*simulated(rng, 0.03, pairs=4000)))[0] >= 0.8
    assert bounds(follow_advice(*simulated(rng, pairs=4000)))[1] <= 0.05


def test_the_tool_decides_as_the_simulation_does():
    rng = np.random.default_rng(9)
    first, second = simulated(rng, 0.03, seeds=6, pairs=60)
    expected = verdict.welch(first, second).probability() < verdict.look_level(0.05)
    assert 10 < expected.sum() < 55
    for row, decided in enumerate(expected):
        values = {"a": np.exp(first[row]), "b": np.exp(second[row])}
        methods = {name: {s: {0: float(x)} for s, x in enumerate(v)} for name, v in values.items()}
        (found,) = verdict.compare_methods(methods).verdicts
        assert (found.better is not None) == decided == (not found.low <= 0 <= found.high)


# ---- the verdict --------------------------------------------------------------------------------


def seeds(*values):
    return {number: {0: value} for number, value in enumerate(values)}


CLEAR = {"a": seeds(20.0, 20.2, 19.9, 20.1), "b": seeds(15.0, 15.1, 15.3, 14.9)}


@pytest.mark.parametrize(
    ("metric", "better"),
    [("fid", "b"), ("precision", "a"), ("FD_DINOv2", "b"), ("recall:resnet-56", "a")],
)
def test_the_direction_of_a_metric(metric, better):
    (found,) = verdict.compare_methods(CLEAR, metric=metric).verdicts
    assert (found.better, found.reason, found.compared) == (better, "", 4)
    logs = [np.log(list(v[0] for v in CLEAR[name].values())) for name in "ab"]
    assert found.difference == pytest.approx(math.exp(logs[1].mean() - logs[0].mean()) - 1)
    assert found.low < found.difference < found.high < -0.2


def test_one_run_each_is_always_inconclusive():
    (found,) = verdict.compare_methods({"a": seeds(20.0), "b": seeds(2.0)}).verdicts
    assert found.better is None and found.low is None and found.from_field
    assert "at least 3 training seeds of each method, there are 1 and 1" in found.reason
    margin = 100 * 1.959964 * math.sqrt(2) * FIELD
    assert f"by up to {margin:.1f} % in 19 of 20" in found.reason


@pytest.mark.parametrize("sampling", [1, 50])
def test_sampling_seeds_do_not_replace_training_seeds(sampling):
    rng = np.random.default_rng(0)
    methods = {
        name: {s: dict(enumerate(rng.normal(mean, 0.01, sampling))) for s in range(2)}
        for name, mean in (("a", 20), ("b", 10))
    }
    assert verdict.compare_methods(methods).verdicts[0].better is None


def test_the_first_seeds_of_the_longer_method_are_compared():
    more = {**CLEAR, "a": {9: {0: 90.0}, **CLEAR["a"]}}
    (found,) = verdict.compare_methods(more).verdicts
    (same,) = verdict.compare_methods(CLEAR).verdicts
    assert (found.low, found.high, found.compared) == (same.low, same.high, 4)


def test_several_methods_share_the_5_percent():
    found = verdict.compare_methods({**CLEAR, "c": CLEAR["b"], "d": CLEAR["b"]})
    assert found.level == pytest.approx(0.05 / 3) and len(found.verdicts) == 3
    single = verdict.compare_methods(CLEAR).verdicts[0]
    assert found.verdicts[0].low < single.low < single.high < found.verdicts[0].high


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (CLEAR, dict(metric="mine"), "--better: say whether a higher or a lower mine is better"),
        (CLEAR, dict(better="higher"), "--better: a lower fid is better"),
        (CLEAR, dict(scale="log"), "--scale: 'log' is unknown"),
        (CLEAR, dict(effect=3), "--effect: must be a finite number"),
        (CLEAR, dict(planned=2), "--planned: must be an integer of at least 3"),
        (CLEAR, dict(planned=3), "a: has 4 training seeds, but --planned is 3"),
        ({"a": CLEAR["a"]}, {}, "takes 2 to 11 methods, got 1"),
        ({str(n): CLEAR["a"] for n in range(12)}, {}, "takes 2 to 11 methods, got 12"),
        ({**CLEAR, "b": seeds(1.0, 1.0, 1.0)}, {}, "b: 3 training seeds have the same figure"),
        ({**CLEAR, "b": seeds(1.0, -0.5)}, {}, "needs values above 0, got -0.5; pass --scale abs"),
        ({n: seeds(*range(1, 26)) for n in "ab"}, {}, "have 25 training seeds each"),
    ],
)
def test_what_does_not_fit_is_refused(methods, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        verdict.compare_methods(methods, **options)


def test_differences_that_are_not_relative():
    methods = {"a": seeds(0.001, -0.002, 0.0), "b": seeds(0.5, 0.501, 0.502)}
    found = verdict.compare_methods(methods, metric="kid", scale="absolute")
    assert found.verdicts[0].better == "a"
    assert found.verdicts[0].difference == pytest.approx(0.501 + 0.001 / 3)


def test_a_planned_number_is_one_look_at_the_full_level():
    early = verdict.compare_methods(CLEAR, planned=5)
    assert early.verdicts[0].better is None and early.look == 0.05
    assert "5 training seeds of each method were planned, there are 4 and 4" in str(early)
    assert verdict.compare_methods(CLEAR, planned=4).verdicts[0].better == "b"


# ---- the command --------------------------------------------------------------------------------

PROTOCOL = {
    "samples": 50000,
    "sampler": {"name": "sde", "steps": 250},
    "guidance": {"scale": 1.0},
    "weights": "ema",
    "iteration": 400000,
}


def save(folder, method, seed, figures, sampling=0, iteration=400000, **changed):
    provenance = {
        "method": method,
        "run": f"{method}_{seed}",
        "training_seed": seed,
        "sampling_seed": sampling,
        "checkpoint_sha256": f"{method}{seed}{iteration}",
        "iteration": iteration,
    }
    own = {key: changed.pop(key) for key in list(changed) if key in provenance}
    protocol = {**PROTOCOL, "iteration": iteration, **changed}
    path = folder / f"{method}_{seed}" / "evaluations" / f"{iteration}_{sampling}.json"
    EvaluationResult(figures, protocol, {**provenance, **own}).save(path)
    return path


@pytest.fixture
def runs(tmp_path):
    """Two methods of four training seeds with two sampling seeds each."""
    rng = np.random.default_rng(0)
    for method, mean in (("sit-b", 35.0), ("repa_sit-b", 22.0)):
        for seed in range(4):
            for sampling in range(2):
                value = float(mean * math.exp(rng.normal(0, 0.013)))
                save(tmp_path, method, seed, {"fid": value, "is": 1000 / value}, sampling)
    return tmp_path


def compare(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def work_dirs(folder, method):
    return sorted(folder.glob(f"{method}_[0-9]"))


def test_runs_are_sorted_by_their_method(runs, capsys):
    given = [*work_dirs(runs, "sit-b"), *work_dirs(runs, "repa_sit-b")]
    code, out, _ = compare(capsys, *given)
    assert code == 0 and "repa_sit-b is better" in out
    assert "4 training seeds, 8 results" in out and "sampling seeds 1" in out
    code, out, _ = compare(capsys, *given, "--baseline", "repa_sit-b", "--metric", "is")
    assert "sit-b against repa_sit-b" in out and "repa_sit-b is better" in out


def test_groups_are_named(runs, capsys):
    groups = [("plain", "sit-b"), ("aligned", "repa_sit-b")]
    given = [
        word for name, method in groups for word in ("--group", name, *work_dirs(runs, method))
    ]
    assert "aligned against plain" in compare(capsys, *given)[1]


@pytest.mark.parametrize("suffix", ["md", "csv", "json"])
def test_the_output_is_written(runs, capsys, suffix):
    out = runs / f"verdict.{suffix}"
    given = [*work_dirs(runs, "sit-b"), *work_dirs(runs, "repa_sit-b"), "--out", out, "--json"]
    code, printed, _ = compare(capsys, *given)
    found = json.loads(printed)
    (one,) = found["verdicts"]
    assert code == 0 and one["better"] == "repa_sit-b" and found["protocol_differences"] == []
    if suffix == "json":
        assert json.loads(out.read_text()) == found
    elif suffix == "csv":
        (row,) = csv.DictReader(out.read_text().splitlines())
        assert float(row["difference"]) == one["difference"] and row["second_results"] == "8"
    else:
        assert "| repa_sit-b against sit-b | -3" in out.read_text()


def test_unlike_protocols_are_refused(runs, capsys):
    path = save(runs, "sit-b", 4, {"fid": 30.0}, guidance={"scale": 1.5, "interval": [0, 0.7]})
    given = [*work_dirs(runs, "sit-b"), *work_dirs(runs, "repa_sit-b")]
    code, out, err = compare(capsys, *given, "--out", runs / "x.md")
    assert code == 2 and "guidance.scale: 1.0 against 1.5" in err and "--protocol" in err
    assert not out and not (runs / "x.md").exists()
    assert err.count(str(given[0])) == 1  # a pair is named once, whatever it differs in
    code, out, _ = compare(capsys, *given, "--force")
    assert code == 0 and out.startswith("warning: the protocols differ: guidance.scale")
    code, _, err = compare(capsys, *given, "--protocol", re.findall(r"[0-9a-f]{12}", err)[0])
    assert code == 2 and f"nothing in {path.parents[1]} has" in err
    code, out, _ = compare(
        capsys, *(path for path in given if path.name != "sit-b_4"), "--metric", "is"
    )
    assert code == 0


def test_one_of_several_iterations_is_chosen(runs, capsys):
    for method in ("sit-b", "repa_sit-b"):
        for seed in range(4):
            save(runs, method, seed, {"fid": 50.0 + seed / 10}, iteration=100000)
    given = [*work_dirs(runs, "sit-b"), *work_dirs(runs, "repa_sit-b")]
    code, _, err = compare(capsys, *given)
    assert code == 2 and "--iteration" in err and "100000, 400000" in err
    assert "inconclusive" in compare(capsys, *given, "--iteration", 100000)[1]
    assert "is better" in compare(capsys, *given, "--iteration", 400000)[1]
    assert "has no result at 5" in compare(capsys, *given, "--iteration", 5)[2]


MISTAKES = [
    (dict(training_seed="unknown"), "its provenance has no 'training_seed'"),
    (dict(sampling_seed="0"), "sampling_seed must be an integer"),
    (dict(sampling_seed=0, checkpoint_sha256="sit-b3400000"), "are of one checkpoint"),
    (dict(training_seed=3, sampling_seed=9), "training seed 3 but different values of 'run'"),
    (dict(training_seed=3), "have the same training seed 3 and sampling seed 0"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES)
def test_results_with_wrong_seeds_are_refused(runs, capsys, changed, message):
    save(runs, "sit-b", 4, {"fid": 35.0}, **changed)
    code, out, err = compare(capsys, *work_dirs(runs, "sit-b"), *work_dirs(runs, "repa_sit-b"))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give either RUN"),
        ("sit-b_0", "all results are of sit-b"),
        ("sit-b_0 repa_sit-b_0 --metric fidd", "has the figure 'fidd'; did you mean 'fid'"),
        ("sit-b_0 repa_sit-b_0 --baseline repa", "did you mean 'repa_sit-b'"),
        ("sit-b_0 repa_sit-b_0 --out x.html", "--out: must end in .md, .csv, .json"),
        ("sit-b_0 missing", "missing does not exist"),
        ("sit-b_0 empty", "empty holds no results"),
        ("sit-b_0 broken.json", "broken.json is no result"),
        ("sit-b_0 --group a repa_sit-b_0", "give either RUN"),
        ("--group a sit-b_0 --group a repa_sit-b_0", "each name once"),
        ("--group a --group b sit-b_0", "'a' has no runs"),
        ("sit-b_0 repa_sit-b_0 --protocol xyz", "--protocol: sit-b has no result of 'xyz'"),
        ("sit-b_0 repa_sit-b_0 --effect 0", "--effect: must be a finite number"),
    ],
)
def test_a_wrong_command_is_one_line(runs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    (runs / "broken.json").write_text("{}")
    code, out, err = compare(capsys, *arguments.split())
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


# ---- the page -----------------------------------------------------------------------------------

MINI = {  # Frechet distance on ResNet-56 features by training seed: docs/verdicts.md
    "vanilla": (6.27, 6.34),
    "repa": (6.10, 6.03),
    "sra2": (6.28, 6.35),
    "ahpa": (6.21, 6.11),
    "ahpa-normalised": (5.95, 6.20),
    "static-normalised": (5.92,),
}


def test_the_worked_example_is_what_the_command_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method, values in MINI.items():
        for seed, value in enumerate(values):
            save(tmp_path, method, seed, {"fid": value}, samples=5000)
    page = (ROOT / "docs" / "verdicts.md").read_text()
    shown = re.findall(r"```bash\n(ahpa compare [^\n]*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for line, expected in shown:
        words = shlex.split(line)[2:]
        paths = [str(p) for w in words for p in (sorted(tmp_path.glob(w)) if "*" in w else [w])]
        code, out, _ = compare(capsys, *paths)
        assert code == 0 and out == expected


# ---- compare-protocols --------------------------------------------------------------------------

FULL = {
    "samples": 50000,
    "classes": "balanced",
    "sampler": {"name": "sde", "steps": 250, "evaluations": 250, "t_grid": "uniform"},
    "guidance": {"scale": 1.0, "interval": [0.0, 1.0], "channels": None},
    "latents": {"scale": 0.18215, "shift": 0.0},
    "decoder": {"name": "stabilityai/sd-vae-ft-mse", "sha256": "a1b2"},
    "rounding": "127.5 x + 128, clipped, truncated",
    "reference": {"name": "VIRTUAL_imagenet256_labeled.npz", "sha256": "c3d4"},
    "weights": "ema",
    "ema_decay": 0.9999,
    "iteration": 400000,
}


def protocols(tmp_path, capsys, **changed):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, protocol in zip(paths, (FULL, {**FULL, **changed})):
        EvaluationResult({"fid": 22.4}, protocol, {"training_seed": 0}).save(path)
    code = main(["compare-protocols", *map(str, paths)])
    return code, capsys.readouterr().out.splitlines()


def test_protocols_that_are_alike(tmp_path, capsys):
    code, lines = protocols(tmp_path, capsys)
    assert code == 0 and lines[-1] == "alike: their figures are comparable"


def test_protocols_that_differ(tmp_path, capsys):
    changed = {
        "guidance": {"scale": 1.65, "interval": [0.0, 0.72], "channels": None},
        "decoder": {**FULL["decoder"], "sha256": "unknown"},
    }
    code, lines = protocols(tmp_path, capsys, **changed)
    assert code == 1 and lines[2:] == [
        "3 keys differ:",
        "  guidance.scale     1.0 against 1.65",
        "  guidance.interval  [0.0,1.0] against [0.0,0.72]",
        "  decoder.sha256     a1b2 against not recorded",
    ]


def test_what_nobody_recorded_is_never_alike(tmp_path, capsys):
    path = tmp_path / "a.json"
    EvaluationResult({}, {**FULL, "rounding": "unknown"}, {}).save(path)
    assert main(["compare-protocols", str(path), str(path)]) == 1
    out = capsys.readouterr().out
    assert "1 key differs:" in out and "not recorded against not recorded" in out


def test_protocols_of_several_results_are_refused(runs, capsys):
    assert main(["compare-protocols", str(runs / "sit-b_0"), str(runs / "sit-b_1")]) == 2
    assert "has several results; name one: 400000_0.json" in capsys.readouterr().err


def test_every_metrics_direction_is_known():
    """The table, which spares `ahpa compare` the networks, says what the metrics say."""
    for name in METRICS.names():
        try:
            figures = build(METRICS, {"type": name}).figures
        except ConfigError:  # it needs an extractor, which its figure names: "fd:tiny-vit"
            figures = build(METRICS, {"type": name, "extractor": "tiny-vit"}).figures
        for figure, higher in figures.items():
            assert verdict.direction(figure) is higher, figure
