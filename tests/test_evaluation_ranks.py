"""Metrics on real gloo processes: equal figures, one voice, one line for a mistake, and the end
when a process dies. (test_evaluation_metrics and test_sample_set have the same with threads.)"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from support.runs import ROOT, call, environment, train

from ahpa.cli.common import say_once
from ahpa.registry.locations import PACKAGE

EVALUATE = [str(PACKAGE.parent / "tools" / "evaluate.py")]
METRICS = "fd:tiny-vit,kid:tiny-vit,mind:tiny-vit,precision:tiny-vit,recall:tiny-vit"
HOW = dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def torchrun(processes, *arguments):
    own = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *own, *map(str, arguments), "--launcher", "pytorch"]


def start_joined(processes, *command):
    """Start processes that join each other without torchrun, which is faster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_PORT=port)
        own = environment(MASTER_ADDR="127.0.0.1", **{key: str(n) for key, n in place.items()})
        whole = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(whole, env=own, **HOW))
    return started


def mistakes(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two sets of images, and the result of one process."""
    folder = tmp_path_factory.mktemp("alone")
    random = np.random.default_rng(0)
    for name, count in (("samples", 37), ("reference", 29)):
        coarse = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
        np.savez(folder / f"{name}.npz", arr_0=coarse.repeat(8, 1).repeat(8, 2))
    arguments = [folder / "samples.npz", "--reference", folder / "reference.npz"]
    arguments += ["--metrics", METRICS]
    done = call("evaluate", *arguments, "--batch", 8, "--out", folder / "alone.json")
    assert done.returncode == 0, done.stderr
    return arguments, json.loads((folder / "alone.json").read_text())


def check_equal(path, before):
    """Check that a result has the protocol of another one, and its figures but for rounding."""
    result = json.loads(path.read_text())
    assert result["protocol"] == before["protocol"]
    assert result["protocol_hash"] == before["protocol_hash"]
    assert list(result["figures"]) == list(before["figures"])
    for name, value in before["figures"].items():
        assert result["figures"][name] == pytest.approx(value, rel=1e-6), name


def test_two_processes_compute_the_figures_of_one(alone, tmp_path):
    arguments, before = alone
    own = [*EVALUATE, *arguments, "--batch", 5, "--out", tmp_path / "two.json"]
    both = start_joined(2, *own, "--launcher", "pytorch")
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    check_equal(tmp_path / "two.json", before)
    assert said[0][0].count("samples: ") == said[0][0].count("result: ") == 1
    assert said[1][0] == "", "only the first process speaks"
    assert [path.name for path in tmp_path.iterdir()] == ["two.json"]


@pytest.mark.slow
def test_three_processes_of_torchrun_compute_the_figures_of_one(alone, tmp_path):
    arguments, before = alone
    whole = torchrun(3, *EVALUATE, *arguments, "--batch", 3, "--out", tmp_path / "three.json")
    done = subprocess.run(whole, env=environment(), timeout=300, **HOW)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(tmp_path / "three.json", before)
    assert done.stdout.count("result: ") == 1


# ---- one line ---------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The environment of a process of torchrun, whose store runs here."""
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def test_what_all_processes_say_is_printed_once(launched, capsys, monkeypatch):
    for text in ("error: a", "error: a", "error: b", "error: a"):
        say_once(text)
    assert capsys.readouterr().err == "error: a\nerror: b\n"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun has started all of them anew
    say_once("error: a")
    assert capsys.readouterr().err == "error: a\n"


def test_without_a_store_every_process_speaks(launched, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setattr("ahpa.engine.distributed.STORE_TIMEOUT", timedelta(seconds=0.2))
    for _ in range(2):
        say_once("error: a")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    say_once("error: a")
    assert capsys.readouterr().err == 3 * "error: a\n"


@pytest.mark.slow
def test_a_mistake_of_two_processes_is_one_line(alone):
    arguments, _ = alone
    for wrong in (["--metrics", "fud"], ["--reference", "nothing.npz"], ["--out", "/proc/x.json"]):
        whole = torchrun(2, *EVALUATE, *arguments, *wrong)
        done = subprocess.run(whole, env=environment(), timeout=300, **HOW)
        assert done.returncode and len(mistakes(done.stderr)) == 1, done.stderr
        assert "exitcode  : 2" in done.stderr


# ---- a process that dies ----------------------------------------------------------------------

DYING = """
import os, sys
from ahpa.cli.common import run_command
from ahpa.engine.distributed import Processes

def run(arguments):
    processes = Processes.start("pytorch")
    assert processes.gather(processes.rank) == [0, 1]
    if processes.rank == 1:
        os._exit(9)
    getattr(processes, sys.argv[1])(*eval(sys.argv[2]))

sys.exit(run_command(run, None))
"""


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("gather", "(0,)"),
        pytest.param("from_first", "(0,)", marks=pytest.mark.slow),
        pytest.param("any", "(True,)", marks=pytest.mark.slow),
        pytest.param("wait", "()", marks=pytest.mark.slow),
    ],
)
def test_the_death_of_a_process_is_one_line_of_the_other(tmp_path, method, arguments):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    both = start_joined(2, script, method, arguments)
    errors = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [2, 9]
    (line,) = mistakes(errors[0])
    assert "another process of this command has ended" in line
    assert "Traceback" not in errors[0]


def processes_of(folder):
    """Return {rank: process id} of the processes that draw samples into a folder."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
        if str(folder).encode() in words and ranks:
            found[ranks[0]] = int(entry.name)
    return found


@pytest.mark.slow
def test_kill_9_of_one_process_ends_the_command_and_the_next_continues(tmp_path):
    train(tmp_path / "run", iters=3)
    folder = tmp_path / "samples"
    arguments = [*EVALUATE, tmp_path / "run", "--reference", "train", "--reference-count", 40]
    arguments += ["--protocol", "demo", "--metrics", "fd:tiny-vit", "--tile", 8, "--steps", 20]

    def command(count):
        return torchrun(2, *arguments, "--count", count, "--samples", folder)

    first = subprocess.Popen(command(8000), env=environment(), **HOW)
    end = time.time() + 120
    while not (folder / "tiles" / "000002.npy").exists() and time.time() < end:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    os.kill(processes_of(folder)[1], signal.SIGKILL)
    killed = time.time()
    errors = first.communicate(timeout=60)[1]
    assert time.time() - killed < 30 and first.returncode != 0
    assert "-9" in errors and "SIGKILL" in errors
    assert not processes_of(folder)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "tiles").glob("0*.npy")}
    assert before
    done = subprocess.run(command(61), env=environment(), timeout=300, **HOW)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, written in before.items():
        assert (folder / "tiles" / name).stat().st_mtime_ns == written, "was drawn again"
    assert len(list((tmp_path / "run" / "evaluations").glob("*.json"))) == 1
