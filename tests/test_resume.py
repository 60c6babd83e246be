"""Runs that are really killed continue exactly (R1, R4, R6, R10): real processes and signals."""

import signal

import pytest
from support.runs import (
    assert_same_state,
    final_state,
    scalars,
    stable,
    start,
    train,
    wait_for_iteration,
)

ITERS = 10


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = train(folder, iters=ITERS, process=True)
    return folder, done.stdout


def test_the_log_of_a_run_from_its_first_line(uninterrupted):
    folder, out = uninterrupted
    lines = out.splitlines()
    assert lines[0].startswith("ahpa: backbone ") and "GMAC" in lines[0] and "router" in lines[0]
    assert [r["iteration"] for r in scalars(folder)] == list(range(1, ITERS + 1))
    terms = {"loss", "loss/flow", "loss/main/cosine", "main/cosine"}
    names = terms | {"flow", "main/constant_cosine", "grad_norm", "lr"}
    for record in scalars(folder):
        assert names <= set(record), names - set(record)
        total = record["loss/flow"] + record["loss/main/cosine"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)
    assert "tools/sample.py" in lines[-1] and "ETA" in out
    assert {path.name for path in folder.iterdir()} >= {
        "train.log",
        "scalars.json",
        "config.json",
        "checkpoints",
        "samples",
        "policy",
    }
    assert (folder / "train.log").read_text().splitlines() == lines


@pytest.mark.parametrize("at", [2, 5, 7])
def test_kill_9_then_resume_is_bit_identical(uninterrupted, tmp_path, at):
    process = start(tmp_path, iters=ITERS)
    wait_for_iteration(tmp_path, at, process)
    process.kill()
    process.wait()
    assert len(scalars(tmp_path)) < ITERS
    train(tmp_path, "--resume", iters=ITERS)
    assert stable(tmp_path) == stable(uninterrupted[0])
    assert_same_state(final_state(tmp_path), final_state(uninterrupted[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_0_and_resume_is_bit_identical(uninterrupted, tmp_path, number):
    process = start(tmp_path, iters=ITERS)
    wait_for_iteration(tmp_path, 4, process)
    process.send_signal(number)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    assert signal.Signals(number).name in out and "--resume" in out
    reached = scalars(tmp_path)[-1]["iteration"]
    assert reached < ITERS and final_state(tmp_path)["data"]["iteration"] == reached
    train(tmp_path, "--resume", iters=ITERS)
    assert stable(tmp_path) == stable(uninterrupted[0])
    assert_same_state(final_state(tmp_path), final_state(uninterrupted[0]))


def test_resume_in_the_middle_of_a_log_interval(tmp_path):
    """The sums since the last line are part of the checkpoint, so the lines are equal too."""
    options = ["train_cfg.log_interval=4", "checkpoints.interval=3"]
    train(tmp_path / "whole", iters=8, options=options)
    train(tmp_path / "parts", iters=8, options=[*options, "checkpoints.keep=9"])
    for path in (tmp_path / "parts" / "checkpoints").glob("iter_*[68].pth"):
        path.unlink()
    done = train(tmp_path / "parts", "--resume", iters=8, options=options)
    assert "at iteration 3" in done.stdout
    assert stable(tmp_path / "parts") == stable(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_goes_on(uninterrupted, tmp_path):
    train(tmp_path, iters=6)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = train(tmp_path, "--resume", iters=ITERS)
    assert "SHA-256" in done.stdout and "at iteration 3" in done.stdout
    assert f"{newest.name}.damaged" in done.stdout
    final = final_state(tmp_path)
    assert_same_state(final, final_state(uninterrupted[0]), keys=("data", "rng"))
    assert final["data"]["iteration"] == ITERS


def test_another_number_of_workers_gives_the_same_log(uninterrupted, tmp_path):
    train(tmp_path, iters=ITERS, options=["train_dataloader.num_workers=2"])
    assert stable(tmp_path) == stable(uninterrupted[0])


def test_another_seed_gives_another_log(uninterrupted, tmp_path):
    train(tmp_path, "--seed", "1", iters=2)
    assert stable(tmp_path) != stable(uninterrupted[0])[:2]


def test_accumulation_counts_optimiser_steps(tmp_path):
    options = ["optim_wrapper.accumulative_counts=2"]
    train(tmp_path, iters=4, options=options)
    assert [r["iteration"] for r in scalars(tmp_path)] == [1, 2, 3, 4]
    assert final_state(tmp_path)["data"]["consumed"] == 16


def files_in(folder):
    """{path in the folder: its bytes}"""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_fresh_start_keeps_an_earlier_run_apart(tmp_path):
    train(tmp_path, iters=6)
    before = files_in(tmp_path)
    again = train(tmp_path, iters=3)
    assert f"was moved to {tmp_path / 'earlier-1'}" in again.stdout
    assert files_in(tmp_path / "earlier-1") == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iter_000000003.pth"]
    assert len(scalars(tmp_path)) == 3
    train(tmp_path, iters=1)
    assert (tmp_path / "earlier-2" / "checkpoints" / "iter_000000003.pth").exists()
    resumed = train(tmp_path, "--resume", iters=2)
    assert "at iteration 1" in resumed.stdout  # of the newest run, not of iteration 6
    assert not (tmp_path / "earlier-3").exists()


def test_resume_tells_what_changed_and_changes_it(tmp_path):
    train(tmp_path, iters=2)
    options = [
        "optim_wrapper.optimizer.lr=5e-4",
        "model.alignments.main.weight=0.5",
        "hooks.samples.steps=3",
    ]
    done = train(tmp_path, "--resume", iters=4, options=options)
    assert "optim_wrapper.optimizer.lr: 0.002 -> 0.0005" in done.stdout
    assert "samples.steps" not in done.stdout
    assert "model.alignments.main.weight: 1.0 -> 0.5" in done.stdout
    assert [record["lr"] for record in scalars(tmp_path)] == [0.002, 0.002, 0.0005, 0.0005]
    last = scalars(tmp_path)[-1]
    assert last["loss/main/cosine"] == pytest.approx(0.5 * last["main/cosine"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["model.alignments.main.router=dict(type='LUTRouter')"],
            "model.alignments.main.router.type: 'MLPRouter'",
        ),
        (["model.backbone.depth=3"], "model.backbone.depth: 2 -> 3"),
        (["optim_wrapper.optimizer.type=Adam"], "another optimiser"),
        (["optim_wrapper.optimizer.weight_decay=0.1"], "optim_wrapper.optimizer.weight_decay"),
        (["param_scheduler=dict(type='ConstantLR')"], "schedule cannot change"),
    ],
)
def test_resume_refuses_what_does_not_fit_and_loses_nothing(two_iterations, options, said):
    files = [
        path for path in two_iterations.rglob("*") if path.is_file() and path.name != "train.log"
    ]
    before = {path: path.read_bytes() for path in files}
    done = train(two_iterations, "--resume", iters=4, options=options, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and "another --work-dir" in done.stderr
    assert {path: path.read_bytes() for path in files} == before


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    train(folder, iters=2)
    return folder
