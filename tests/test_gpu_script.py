"""benchmarks/gpu.py at toy size on the CPU: every measurement is there, the JSON has the documented
form, the checks run first, and a broken piece makes the exit status 1."""

import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

from ahpa.engine.ema import ExponentialMovingAverage
from ahpa.losses.pairwise import CosineLoss
from ahpa.sampling.samplers import EulerSampler
from ahpa.tokenizers.autoencoder_kl import KLAutoencoder

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
MAYBE_TEXT = (str, type(None))
CHECK = {
    "name": str,
    "against": str,
    "error": MAYBE_NUMBER,
    "tolerance": NUMBER,
    "passed": bool,
}
BOTH_COUNTINGS = {"with_attention": NUMBER, "without_attention": NUMBER}
SECONDS = {"median": NUMBER, "q1": NUMBER, "q3": NUMBER, "least": NUMBER}
MEASUREMENT = {
    "name": str,
    "kind": str,
    "status": str,
    "reason": MAYBE_TEXT,
    "batch": (int, type(None)),
    "out_of_memory": [int],
    "seconds": (SECONDS, None),
    "rounds": int,
    "took_s": NUMBER,
    "images_per_s": MAYBE_NUMBER,
    "gmac_per_image": (BOTH_COUNTINGS, None),
    "tflops": (BOTH_COUNTINGS, None),
    "utilisation": (BOTH_COUNTINGS, None),
    "matmul_tflops": MAYBE_NUMBER,
    "peak_memory_gib": MAYBE_NUMBER,
    "details": dict,
    "checks": [CHECK],
}
REPORT = {
    "format": int,
    "toy": bool,
    "finished": bool,
    "passed": bool,
    "elapsed_s": NUMBER,
    "seconds": NUMBER,
    "environment": {
        "device": str,
        "driver": MAYBE_TEXT,
        "memory_gib": MAYBE_NUMBER,
        "state": MAYBE_TEXT,
        "torch": str,
        "cuda": MAYBE_TEXT,
        "cudnn": (int, type(None)),
        "python": str,
        "ahpa": str,
        "threads": int,
        "float32_matmul_precision": str,
        "clocks": str,
    },
    "plan": dict,
    "notes": dict,
    "checks": [CHECK],
    "errors": [str],
    "measurements": [MEASUREMENT],
    "ratios": [{"name": str, "ratio": NUMBER, "of": [str], "batches": [int]}],
}
SIZES = ("B", "XL", "S")
WAYS = ("diffusers fp32", "diffusers bf16", "levels", "latents and levels", "early levels")
EXPECTED = ["matmul", "operators B repa"]
EXPECTED += [f"train {s} {m} eager" for s in SIZES for m in ("repa", "ahpa", "bare")]
EXPECTED += [f"train {s} {m} compiled" for s in SIZES for m in ("repa", "ahpa", "bare")]
EXPECTED += [f"train {s} repa {mode}" for s in SIZES for mode in ("peer", "peer compiled")]
EXPECTED += [f"vae {way}" for way in WAYS]
EXPECTED += [f"sample B euler {mode}" for mode in ("plain", "eager", "compiled")]
EXPECTED += [f"sample B sde {mode}" for mode in ("plain", "eager", "compiled")]
EXPECTED += ["sample XL euler compiled", "sample XL sde compiled"]


def assert_form(value, form, where="report"):
    """Compare plain data with a form: type(s), [form], {key: form}, or (form, None)."""
    if isinstance(form, dict):
        assert isinstance(value, dict) and list(value) == list(form), f"{where}: {value!r}"
        for key, part in form.items():
            assert_form(value[key], part, f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), f"{where}: {value!r}"
        for number, item in enumerate(value):
            assert_form(item, form[0], f"{where}[{number}]")
    elif isinstance(form, tuple) and form[-1] is None:
        if value is not None:
            assert_form(value, form[0], where)
    else:
        types = form if isinstance(form, tuple) else (form,)
        strict_bool = isinstance(value, bool) and bool not in types
        assert isinstance(value, types) and not strict_bool, f"{where}: {value!r}"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["gpu_script"]


@pytest.fixture(scope="module")
def run(gpu, tmp_path_factory):
    """Run the toy once. Returns (exit status, the JSON, seconds of processor time)."""
    out = tmp_path_factory.mktemp("gpu") / "folder" / "toy.json"
    began = time.process_time()
    status = gpu.main(["--toy", "--out", str(out)])
    return status, json.loads(out.read_text()), time.process_time() - began


def checks_only(gpu, tmp_path):
    """Run the first checks alone: no time is left for measurements."""
    out = tmp_path / "out.json"
    status = gpu.main(["--toy", "--seconds", "0", "--out", str(out)])
    return status, json.loads(out.read_text())


def failed(report):
    return {check["name"] for check in report["checks"] if not check["passed"]}


def test_the_json_has_the_written_out_form(run):
    status, report, _ = run
    assert_form(report, REPORT)
    assert status == 0
    assert report["passed"] and report["finished"] and report["toy"] and not report["errors"]


def test_every_measurement_is_there_and_was_measured(run):
    _, report, _ = run
    rows = report["measurements"]
    assert sorted(row["name"] for row in rows) == sorted(EXPECTED)
    assert [row["reason"] for row in rows if row["status"] != "measured"] == []


def test_the_figures_of_a_row_follow_from_each_other(run):
    _, report, _ = run
    for row in report["measurements"]:
        seconds = row["seconds"]
        assert row["checks"] and all(check["passed"] for check in row["checks"]), row["name"]
        if row["kind"] == "operators":
            continue
        assert 0 < seconds["least"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"]
        if row["batch"] is None:
            continue
        assert math.isclose(row["images_per_s"], row["batch"] / seconds["median"])
        if row["utilisation"] is None:
            continue
        forwards = {"train": 3, "vae": 1, "sample": row["details"].get("steps")}[row["kind"]]
        for counting, used in row["utilisation"].items():
            flops = 2e9 * forwards * row["gmac_per_image"][counting]
            assert math.isclose(row["tflops"][counting], 1e-12 * flops * row["images_per_s"])
            assert math.isclose(used, row["tflops"][counting] / row["matmul_tflops"])


def test_blocks_of_one_model_share_one_compiled_graph(run):
    _, report, _ = run
    rows = [row for row in report["measurements"] if row["name"].endswith("compiled")]
    graphs = [row["details"]["compiled_graphs"] for row in rows]
    assert graphs and set(graphs) == {1}


def test_every_ratio_has_both_its_cases(run, gpu):
    _, report, _ = run
    assert [ratio["name"] for ratio in report["ratios"]] == list(gpu.RATIOS)
    assert all(ratio["ratio"] > 0 for ratio in report["ratios"])


def test_the_toy_is_quick(run):
    assert run[2] < 40, "processor seconds on one thread"


@pytest.mark.parametrize(
    ("owner", "name", "broken", "caught"),
    [
        (
            CosineLoss,
            "compare",
            lambda self, pred, target: (pred - target).square().mean(),
            {"ahpa loss", "repa loss", "losses of four steps"},
        ),
        (
            ExponentialMovingAverage,
            "update",
            lambda self, backbone: None,
            {"clip, AdamW and EMA"},
        ),
        (
            EulerSampler,
            "times",
            lambda self, start, end, count, x: torch.linspace(start, 0.1, count),
            {"euler samples in fp32"},
        ),
        (
            KLAutoencoder,
            "_enter",
            lambda self, x: 0.9 * x.contiguous(memory_format=torch.channels_last),
            {"levels in float32"},
        ),
    ],
    ids=["pair loss", "ema", "sampler", "autoencoder"],
)
def test_a_broken_piece_makes_it_exit_1(gpu, tmp_path, monkeypatch, owner, name, broken, caught):
    monkeypatch.setattr(owner, name, broken)
    status, report = checks_only(gpu, tmp_path)
    assert status == 1 and not report["passed"]
    assert failed(report) == caught


def test_a_check_that_raises_makes_it_exit_1(gpu, tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu.Workbench, "check_matmul", broken)
    status, report = checks_only(gpu, tmp_path)
    assert status == 1
    assert report["errors"] == ["check 1: RuntimeError: no such kernel"]


def test_without_time_the_checks_run_and_measurements_name_the_reason(gpu, tmp_path):
    status, report = checks_only(gpu, tmp_path)
    assert_form(report, REPORT)
    assert status == 0 and len(report["checks"]) == 10
    assert {row["status"] for row in report["measurements"]} == {"skipped"}
    assert all(row["reason"].startswith("the budget is used") for row in report["measurements"])


@pytest.fixture
def bench(gpu, tmp_path):
    return gpu.Workbench(gpu.TOY, torch.device("cpu"), tmp_path)


def job_of(gpu, bench, name):
    (job,) = [job for job in gpu.all_jobs(bench) if job.name == name]
    return job


def test_out_of_memory_falls_to_the_next_batch(gpu, bench, monkeypatch):
    real = gpu.train_step

    def step(model, optimiser, batch, **options):
        if len(batch["label"]) > 2:
            raise torch.OutOfMemoryError("too large")
        return real(model, optimiser, batch, **options)

    monkeypatch.setattr(gpu, "train_step", step)
    row = gpu.Measurement("train", "train")
    job_of(gpu, bench, "train S bare eager").run(row)
    assert row.out_of_memory == [4]
    assert row.batch == 2


def test_a_measurement_that_fails_is_noted_and_the_file_is_written(gpu, bench, tmp_path):
    out = tmp_path / "out.json"
    report = gpu.Report(out, gpu.TOY, torch.device("cpu"), gpu.Budget(100))

    def fail(row):
        raise RuntimeError("a compiler said no\nwith many lines")

    report.run_job(gpu.Job("broken", "train", 0, fail))
    (row,) = json.loads(out.read_text())["measurements"]
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: a compiler said no")
    assert not report.passed


def test_a_measurement_is_stopped_when_the_time_is_over(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    budget = gpu.Budget(0.1)
    report = gpu.Report(tmp_path / "out.json", gpu.TOY, torch.device("cpu"), budget)
    with budget.enforced():
        report.run_job(gpu.Job("endless", "train", 0, lambda row: time.sleep(30)))
    (row,) = report.rows
    assert row.status == "skipped" and row.reason.startswith("stopped")
    assert budget.used < 10


def test_the_plain_sde_step_is_the_written_out_formula(gpu, bench):
    """x + (v - w s / 2) dt + sqrt(w |dt|) n with w = 2 t, s = -(x + (1 - t) v) / t; v = c."""
    generator = bench.generator(bench.model("S", "bare", compiled=False))
    shape = generator.backbone.streams["image"]
    c = 0.5

    class Constant(torch.nn.Module):
        streams = {"image": shape}

        def forward(self, x, t, cond):
            return type("Out", (), {"pred": {"image": torch.full_like(x["image"], c)}})

    generator.backbone = Constant()
    noise = gpu.SampleNoise(0, range(1))
    found = gpu.plain_sample(generator, torch.zeros(1, dtype=torch.long), "sde", 2, noise)
    draws = gpu.SampleNoise(0, range(1))
    x = draws.draw(shape, torch.device("cpu"))
    score = -x  # at t = 1
    x = x + (c - score) * (0.04 - 1) + (2 * 1 * 0.96) ** 0.5 * draws.draw(shape, x.device)
    score = -(x + 0.96 * c) / 0.04
    x = x + (c - 0.04 * score) * (0 - 0.04)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
