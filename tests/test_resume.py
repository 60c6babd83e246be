"""Runs that are really killed continue exactly (R1, R4, R6, R10): real processes and signals."""

import fcntl
import hashlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import (
    ROOT,
    assert_same_state,
    command,
    environment,
    final_state,
    from_a_terminal,
    scalars,
    stable,
    start,
    train,
    wait_for_iteration,
)

from ahpa.engine import checkpoint, resume
from ahpa.registry import signals
from ahpa.registry.contracts import Dataset

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


SLOW = pytest.mark.slow


@pytest.mark.parametrize("at", [pytest.param(2, marks=SLOW), pytest.param(5, marks=SLOW), 7])
def test_kill_9_then_resume_is_bit_identical(uninterrupted, tmp_path, at):
    process = start(tmp_path, iters=ITERS)
    wait_for_iteration(tmp_path, at, process)
    process.kill()
    process.wait()
    assert len(scalars(tmp_path)) < ITERS
    train(tmp_path, "--resume", iters=ITERS)
    assert stable(tmp_path) == stable(uninterrupted[0])
    assert_same_state(final_state(tmp_path), final_state(uninterrupted[0]))


SIGNALS = [
    signal.SIGTERM,
    pytest.param(signal.SIGUSR1, marks=SLOW),
    pytest.param(signal.SIGINT, marks=SLOW),  # the terminal test has one too
]


@pytest.mark.parametrize("number", SIGNALS)
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


def test_a_closed_terminal_saves_and_ends_though_nothing_can_be_shown_any_more(tmp_path):
    """A real terminal: its closing sends SIGHUP, and what is written to it fails."""
    ours, theirs = pty.openpty()

    def in_the_terminal():
        from_a_terminal()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    how = dict(stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=ROOT)
    whole = command(tmp_path, iters=100_000)
    process = subprocess.Popen(whole, env=environment(), preexec_fn=in_the_terminal, **how)
    os.close(theirs)
    threading.Thread(target=drain, args=(ours,), daemon=True).start()
    wait_for_iteration(tmp_path, 2, process)
    os.kill(process.pid, 0)
    CLOSED.add(ours)
    assert process.wait(timeout=120) == 0
    log = (tmp_path / "train.log").read_text()
    assert "SIGHUP at iteration" in log and "Traceback" not in log
    assert final_state(tmp_path)["data"]["iteration"] == scalars(tmp_path)[-1]["iteration"]


CLOSED = set()


def drain(terminal):
    """Read what a terminal shows until it is closed."""
    while terminal not in CLOSED:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)
    os.close(terminal)


def test_ctrl_c_reaches_the_data_workers_too_and_the_run_is_saved(tmp_path):
    """A terminal sends it to every process of the job, whose data workers must not die of it."""
    whole = command(tmp_path, iters=100_000, options=["train_dataloader.num_workers=2"])
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    how |= dict(start_new_session=True, preexec_fn=from_a_terminal)
    process = subprocess.Popen(whole, env=environment(), **how)
    wait_for_iteration(tmp_path, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    assert "SIGINT at iteration" in out and "Traceback" not in out
    assert final_state(tmp_path)["data"]["iteration"] == scalars(tmp_path)[-1]["iteration"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    options = [f"hooks.samples.{key}=64" for key in ("steps", "columns")]
    options += ["hooks.samples.interval=2"]  # a long grid is drawn after the second step
    process = start(tmp_path, iters=100_000, options=options)
    wait_for_iteration(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    line = next(line for line in process.stdout if "Ctrl-C again" in line)
    assert "a checkpoint is saved" in line
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == -signal.SIGINT


def test_a_signal_during_the_imports_is_heard(tmp_path):
    """The handlers are there before torch is: the process ends by itself, not by the signal."""
    process = start(tmp_path, iters=9)
    wait_for_handler(process.pid, signal.SIGTERM)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "SIGTERM before the first step" in out, out
    assert not (tmp_path / "checkpoints").exists()


def wait_for_handler(pid, number, seconds=60):
    """Return when a process handles a signal."""
    end = time.time() + seconds
    while time.time() < end:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        if caught >> (number - 1) & 1:
            return
        time.sleep(0.002)
    raise AssertionError(f"{signal.Signals(number).name} is not handled after {seconds} s")


def test_nohup_stays_nohup_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.asked() == "SIGUSR1"
    finally:
        signals.restore()
        signal.signal(signal.SIGHUP, before[-1])
    assert signals.asked() is None
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before


def test_the_final_checkpoint_comes_before_the_final_grid(tmp_path):
    """kill -9 while the last grid is drawn: nothing of the training is lost."""
    options = [f"hooks.samples.{key}=64" for key in ("steps", "columns")]
    process = start(tmp_path, iters=2, options=options)
    wait_for_iteration(tmp_path, 2, process)
    process.kill()
    process.wait()
    assert not list((tmp_path / "samples").glob("*")), "the grid was still being drawn"
    assert final_state(tmp_path)["data"]["iteration"] == 2


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
    assert "hooks.samples.steps: 2 -> 3" in done.stdout
    assert "train_cfg.max_iters: 2 -> 4" in done.stdout
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
        (["param_scheduler=dict(type='ConstantLR', end=5)"], "schedule cannot change"),
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


# ---- what is found in the work dir ---------------------------------------------------------------


@pytest.fixture
def saved_run(two_iterations, tmp_path):
    """A copy of a run of two iterations, which a test may spoil."""
    return Path(shutil.copytree(two_iterations, tmp_path / "run"))


def unreadable(path):
    """Root may read what others may not, but not what the kernel gives to no reader."""
    path.symlink_to("/sys/bus/cpu/uevent")
    if os.geteuid():
        path.unlink()
        path.write_bytes(b"x" * 4096)
        path.chmod(0)


ODD = {
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link loop": lambda path: path.symlink_to(path.name),
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "an unreadable file": unreadable,
    "an empty file": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_only_named_like_a_checkpoint_is_passed_over(saved_run, kind):
    odd = saved_run / "checkpoints" / "iter_000000009.pth"
    ODD[kind](odd)
    done = train(saved_run, "--resume", iters=3, options=["checkpoints.keep=1"])
    assert "at iteration 2" in done.stdout
    assert odd.name in (saved_run / "train.log").read_text()
    assert final_state(saved_run)["data"]["iteration"] == 3


def test_a_run_that_is_at_its_end_says_that_nothing_is_left_to_train(saved_run):
    done = train(saved_run, "--resume", iters=1)
    assert "nothing is left to train: the run has 1 iterations" in done.stdout


def test_with_nothing_but_damaged_checkpoints_the_run_does_not_begin_again(saved_run):
    (path,) = (saved_run / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    for _ in range(2):  # the second time the file bears its new name already
        done = train(saved_run, "--resume", iters=3, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "cannot resume" in done.stderr and "without --resume" in done.stderr
    assert "set aside" in (saved_run / "train.log").read_text()
    assert not (saved_run / "earlier-1").exists() and len(scalars(saved_run)) == 2
    train(saved_run, iters=1)
    assert (saved_run / "earlier-1" / "checkpoints" / f"{path.name}.damaged").exists()


def test_weights_that_are_not_finite_are_no_checkpoint_to_continue(saved_run):
    """As an earlier version might have saved them."""
    state = final_state(saved_run)
    name = next(iter(state["model"]))
    state["model"][name] = torch.full_like(state["model"][name], float("nan"))
    del state["meta"]["finite"]
    checkpoint.save(state, saved_run / "checkpoints" / "iter_000000005.pth")
    done = train(saved_run, "--resume", iters=3)
    assert f"not finite (model: {name})" in done.stdout
    assert "iter_000000002.pth at iteration 2" in done.stdout


@pytest.mark.parametrize(
    "spoilt",
    [b"\0\0\0\0\n", b"\n", b"garbage\n", b"[1]\n", b'{"iteration": "x"}\n', b"\xff\xfe\n"],
)
def test_a_spoilt_log_line_does_not_block_a_resume(saved_run, spoilt):
    path = saved_run / "scalars.json"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + spoilt + second)
    done = train(saved_run, "--resume", iters=3)
    assert [record["iteration"] for record in scalars(saved_run)] == [1, 2, 3]
    assert "1 spoilt lines" in done.stdout
    assert (saved_run / "scalars.json.damaged").read_bytes() == first + spoilt + second


# ---- a changed data set --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory):
    """(pictures in two class folders, a run on them)"""
    place = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        path = place / "data" / ("fish", "house")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number * 30, 0, 0)).save(path)
    train(place / "run", "--data", str(place / "data"), iters=1)
    return place


@pytest.fixture
def pictures(picture_run, tmp_path):
    """A copy of the pictures and of the run, which a test may change."""
    return Path(shutil.copytree(picture_run, tmp_path / "pictures"))


def add(data):
    shutil.copy(data / "fish" / "0.png", data / "fish" / "00.png")


def remove(data):
    (data / "house" / "1.png").unlink()


def rename_file(data):
    (data / "house" / "1.png").rename(data / "house" / "9.png")


def rename_class(data):
    (data / "fish").rename(data / "trout")


def swap_classes(data):
    (data / "fish").rename(data / "aside")
    (data / "house").rename(data / "fish")
    (data / "aside").rename(data / "house")


CHANGES = {
    add: "8 samples became 9",
    remove: "8 samples became 7",
    rename_file: "its samples have other names",
    rename_class: "classes that went: 'fish'; that came: 'trout'",
    swap_classes: "its samples have other names",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_data_set_is_told_and_refused_unless_accepted(pictures, change):
    change(pictures / "data")
    given = ["--resume", "--data", str(pictures / "data")]
    done = train(pictures / "run", *given, iters=2, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert CHANGES[change] in done.stderr and "--accept-changed-data" in done.stderr
    assert len(scalars(pictures / "run")) == 1
    done = train(pictures / "run", *given, "--accept-changed-data", iters=2)
    assert CHANGES[change] in done.stdout and "at iteration 1" in done.stdout
    train(pictures / "run", *given, iters=3)  # the checkpoint has the new fingerprint


def test_the_same_data_in_another_place_is_told_first_and_goes_on(pictures):
    given = ["--data", str(pictures / "data"), "--seed", "5"]
    done = train(pictures / "run", "--resume", *given, iters=2)
    (told,) = [line for line in done.stdout.splitlines() if "changed since" in line]
    changed = told.split("checkpoint: ")[1].split("; ")
    assert changed[0].startswith("train_dataloader.dataset.root: ")
    assert any(part.startswith("randomness") for part in changed)


def test_another_number_of_processes_is_told(saved_run):
    (path,) = (saved_run / "checkpoints").iterdir()
    state = final_state(saved_run)
    checkpoint.save({**state, "rng": state["rng"] * 2, "metrics": state["metrics"] * 2}, path)
    done = train(saved_run, "--resume", iters=3)
    assert "changed since that checkpoint: number of processes: 2 -> 1" in done.stdout


def test_a_fingerprint_is_of_names_classes_and_order():
    class Named(Dataset):
        classes = ("a", "b")

        def __init__(self, *names):
            self.names = names

        def __len__(self):
            return len(self.names)

        def __getitem__(self, key):
            raise AssertionError("no sample is read")

        def sample_id(self, index):
            return self.names[index]

    one = Named("a/1", "b/2").fingerprint()
    assert one == {
        "samples": 2,
        "classes": ["a", "b"],
        "order": hashlib.sha256(b"a/1\0b/2\0").hexdigest(),
    }
    assert Named("b/2", "a/1").fingerprint()["order"] != one["order"]
    assert Named("a/\udcff", "\ud800").fingerprint()["samples"] == 2  # names that are no text
    assert resume.data_changes(one, {**one, "classes": ["b", "a"]}) == [
        "the order of the classes: 'a', 'b' became 'b', 'a'"
    ]
    assert resume.data_changes(one, one) == []
