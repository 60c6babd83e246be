"""Runs that are really killed go on exactly (R1, R4, R6, R10): real processes, real signals, bit-identical results."""

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
    done = train(folder, iters=ITERS)
    return folder, done.stdout


def test_the_log_of_a_run_from_its_first_line(uninterrupted):
    folder, out = uninterrupted
    lines = out.splitlines()
    assert lines[0].startswith("ahpa: backbone ") and "GMAC" in lines[0] and "router" in lines[0]
    assert [r["iteration"] for r in scalars(folder)] == list(range(1, ITERS + 1))
    for name in ("loss", "loss_flow", "loss_main_cosine", "main/cosine", "main/constant_cosine", "grad_norm", "lr"):
        assert all(name in record for record in scalars(folder)), name
    for record in scalars(folder):
        assert record["loss"] == pytest.approx(record["loss_flow"] + record["loss_main_cosine"], rel=1e-5)
    assert "tools/sample.py" in lines[-1] and "ETA" in out
    assert {path.name for path in folder.iterdir()} >= {
        "train.log", "scalars.json", "config.json", "checkpoints", "samples", "policy"}  # fmt: skip
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
    options = ["train_cfg.log_interval=4", "hooks.checkpoints.interval=3"]
    train(tmp_path / "whole", iters=8, options=options)
    train(tmp_path / "parts", iters=8, options=[*options, "hooks.checkpoints.keep=9"])
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
    assert "SHA-256" in done.stdout and f"{newest.name}.damaged" in done.stdout and "at iteration 3" in done.stdout
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
