"""Checkpoints: atomic, checksummed, safely read; the newest valid file is used (R3-5, R13)."""

import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from ahpa.engine import checkpoint
from ahpa.engine.checkpoint import DamagedCheckpoint
from ahpa.registry import UserError

ROOT = Path(__file__).resolve().parents[1]


def _state(seed=0):
    values = torch.Generator().manual_seed(seed)
    return dict(
        model={"w": torch.randn(500, 100, generator=values)},
        meta=dict(iteration=seed, config={"a": [1, None]}),
    )


def _save(folder, *iterations):
    paths = [folder / checkpoint.NAME.format(i) for i in iterations]
    for i, path in zip(iterations, paths, strict=True):
        checkpoint.save(_state(i), path)
    return paths


def _same(state, seed):
    return (
        torch.equal(state["model"]["w"], _state(seed)["model"]["w"])
        and state["meta"] == _state(seed)["meta"]
    )


def test_round_trip_and_plain_torch_reads_it(tmp_path):
    (path,) = _save(tmp_path, 7)
    assert _same(checkpoint.load(path), 7)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["w"], _state(7)["model"]["w"])
    assert _same(checkpoint.load(tmp_path), 7)


@pytest.mark.parametrize("where", [0.0, 0.01, 0.3, 0.5, 0.999])
def test_a_flipped_bit_is_noticed(tmp_path, where):
    (path,) = _save(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"iter_000000001"):
        checkpoint.load(path)


@pytest.mark.parametrize("size", [0, 10, 1000, -1, -100])
def test_a_cut_file_is_noticed(tmp_path, size):
    (path,) = _save(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "flip"])
def test_the_newest_valid_one_is_used_and_the_bad_one_set_aside(tmp_path, damage, monkeypatch):
    paths = _save(tmp_path, 10, 20, 30)
    data = bytearray(paths[2].read_bytes())
    data[len(data) // 2] ^= 1
    paths[2].write_bytes({"empty": b"", "cut": bytes(data[:5000]), "flip": bytes(data)}[damage])
    said = []
    monkeypatch.setattr(
        checkpoint.logger, "warning", lambda text, *parts: said.append(text % parts)
    )
    assert checkpoint.newest(tmp_path) == paths[1]
    assert not paths[2].exists() and paths[2].with_name(paths[2].name + ".damaged").exists()
    assert len(said) == 1 and "iter_000000030.pth" in said[0] and "set aside" in said[0]


def test_none_is_left(tmp_path):
    (path,) = _save(tmp_path, 1)
    path.write_bytes(b"")
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(UserError, match="no valid checkpoint"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "nothing.pth")


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("signed", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, signed):
    target, path = tmp_path / "ran", tmp_path / "evil.pth"
    if signed:  # with a right checksum: only the safe loader is left to stop it
        checkpoint.save(dict(model=Evil(target)), path)
    else:
        path.write_bytes(pickle.dumps(Evil(target)) + b" " * 200)
    with pytest.raises(UserError):
        checkpoint.load(path)
    assert not target.exists()


def test_another_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    (path,) = _save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="99"):
        checkpoint.load(path)


def test_prune_keeps_the_newest_and_clears_what_killed_writers_left(tmp_path):
    paths = _save(tmp_path, 1, 2, 3, 10)
    left = tmp_path / ".iter_000000011.pth.1.tmp"
    left.write_bytes(b"half")
    checkpoint.prune(tmp_path, keep=2, last=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == [paths[2].name, paths[3].name]


def test_a_full_disk_is_a_clear_error_and_old_files_are_intact(tmp_path):
    """Really full: a tmpfs of 1 MB where the machine allows a mount, else a limit on the size of
    files."""
    script = f"""
        import resource, signal, sys
        from pathlib import Path
        from ahpa.engine import checkpoint
        from ahpa.registry import UserError
        import torch
        folder = Path({str(tmp_path)!r})
        checkpoint.save(dict(model=dict(w=torch.ones(10))), folder / "iter_000000001.pth")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(dict(model=dict(w=torch.ones(100_000))), folder / "iter_000000002.pth")
        except UserError as error:
            print(error)
            sys.exit(3)
    """
    done = _python(script)
    assert done.returncode == 3, done.stderr
    assert "could not write" in done.stdout and "intact" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["iter_000000001.pth"]
    assert checkpoint.newest(tmp_path) is not None


def _python(script, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, **options
    )


# ahpa.engine.checkpoint's write is stopped at each of its stages, and the process is killed there.
STAGES = ("before", "half", "written", "synced", "renamed")
WRITER = """
    import os, signal, sys, torch
    from pathlib import Path
    from ahpa.engine import checkpoint
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    def save(value, iteration):
        state = dict(model=dict(w=torch.full((100_000,), value)), meta=dict(iteration=iteration))
        checkpoint.save(state, folder / checkpoint.NAME.format(iteration))
    save(0.0, 1)
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    real_fsync, real_replace, real_open = os.fsync, os.replace, open
    class Half:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *rest): self.file.close()
        def write(self, data):
            self.file.write(bytes(data)[: len(data) // 2]); self.file.flush(); die()
    if stage == "before":
        checkpoint.write_file.__globals__["open"] = lambda *a: die()
    if stage == "half":
        checkpoint.write_file.__globals__["open"] = lambda *a: Half(real_open(*a))
    if stage == "written":
        os.fsync = lambda fd: die()
    if stage == "synced":
        os.replace = lambda *a: die()
    if stage == "renamed":
        os.replace = lambda *a: (real_replace(*a), die())
    save(1.0, 2)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_while_writing_leaves_only_whole_files_under_final_names(tmp_path, stage):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), stage],
        env=environment,
        capture_output=True,
    )
    assert done.returncode == -9, done.stderr.decode()
    names = [path.name for _, path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["iter_000000001.pth"] + ["iter_000000002.pth"] * (stage == "renamed")
    for _, path in checkpoint.list_checkpoints(tmp_path):
        checkpoint.verify(path)
    state = checkpoint.load(tmp_path)
    assert state["meta"]["iteration"] == len(names)


def test_kill_9_at_random_moments_of_a_writing_loop(tmp_path):
    script = """
        import sys, torch
        from pathlib import Path
        from ahpa.engine import checkpoint
        print("ready", flush=True)
        for i in range(1, 10_000):
            folder = Path(sys.argv[1])
            state = dict(model=dict(w=torch.full((300_000,), float(i))), meta=dict(iteration=i))
            checkpoint.save(state, folder / checkpoint.NAME.format(i))
            checkpoint.prune(folder, keep=2, last=i)
    """
    for wait in (0.05, 0.13, 0.31):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.kill()
        process.wait()
        for iteration, path in checkpoint.list_checkpoints(tmp_path):
            assert (checkpoint.load(path)["model"]["w"] == iteration).all()
