"""What may stand in the way of a run in its work dir (R5, R22, R24): another run, a full disk, a
file of the same name, a folder that cannot be written. Real processes, real disks."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import (
    ROOT,
    command,
    environment,
    final_state,
    scalars,
    start,
    train,
    wait_for_iteration,
)

from ahpa.engine import checkpoint, lock
from ahpa.engine.run_log import RunLog
from ahpa.registry import UserError
from ahpa.registry.files import remedy, write_file

QUICK = ["hooks.samples.interval=1", "hooks.policy.interval=1"]


# ---- the lock -----------------------------------------------------------------------------------


def test_a_second_start_is_refused_and_a_killed_ones_lock_is_taken_over(tmp_path):
    first = start(tmp_path, iters=100_000)
    wait_for_iteration(tmp_path, 1, first)
    for arguments in ([], ["--resume"]):
        second = train(tmp_path, *arguments, iters=2, check=False)
        assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
        assert f"process {first.pid} on {socket.gethostname()}" in second.stderr
        assert "--work-dir" in second.stderr
    assert not (tmp_path / "earlier-1").exists()
    wait_for_iteration(tmp_path, scalars(tmp_path)[-1]["iteration"] + 4, first)
    first.kill()
    first.wait()
    assert json.loads((tmp_path / lock.NAME).read_text())["process"] == first.pid
    reached = final_state(tmp_path)["data"]["iteration"]
    resumed = train(tmp_path, "--resume", iters=reached + 1)
    assert f"process {first.pid} on {socket.gethostname()}" in resumed.stdout
    assert f"at iteration {reached}" in resumed.stdout
    assert not (tmp_path / lock.NAME).exists(), "a run that has ended leaves no lock"


HOLDER = """
import os, sys
from pathlib import Path
from ahpa.engine import lock
lock.take(Path(sys.argv[1]))
if os.fork() == 0:  # a data worker, which outlives a killed run for a while
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print("taken", flush=True)
sys.stdin.read()
"""


def test_the_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    whole = [os.sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder = subprocess.Popen(whole, env=environment(), **pipes)
    assert holder.stdout.readline() == b"taken\n"
    with pytest.raises(lock.WorkDirInUse, match=f"process {holder.pid} on"):
        lock.take(tmp_path)
    holder.kill()
    holder.wait()  # its child lives on
    left = lock.take(tmp_path)
    assert left["process"] == holder.pid
    assert lock.take(tmp_path) is None, "a process is not in its own way"
    lock.release(tmp_path)
    lock.release(tmp_path)
    assert not (tmp_path / lock.NAME).exists()
    holder.stdin.close()


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[]", b"{", b'{"process": "x"}'])
def test_a_spoilt_lock_file_is_taken_over(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content)
    lock.take(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    lock.release(tmp_path)


def test_a_link_in_the_locks_place_is_refused_and_its_target_is_intact(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=lock.NAME):
        lock.take(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


# ---- pictures and logs that cannot be written -------------------------------------------------


@pytest.mark.parametrize("name", ["samples", "policy", "logs"])
def test_a_file_in_a_picture_folders_place_costs_a_warning(tmp_path, name):
    (tmp_path / name).write_text("in the way")
    done = train(tmp_path, iters=4, options=[*QUICK, "visualizer.vis_backends=[]"])
    assert final_state(tmp_path)["data"]["iteration"] == 4
    assert len(scalars(tmp_path)) == 4
    if name != "logs":
        assert f"{tmp_path / name}" in done.stdout and "not written" in done.stdout
    assert (tmp_path / name).read_text() == "in the way"


@pytest.mark.parametrize("name", ["train.log", "config.json", "scalars.json"])
def test_a_folder_in_a_logs_place_costs_a_warning(tmp_path, name):
    if name == "scalars.json":  # one that is there at the start is an earlier run's
        RunLog.write, write = lambda log: (made(log.path), write(log)), RunLog.write
    else:
        made(tmp_path / name)
    try:
        done = train(tmp_path, iters=4)
    finally:
        if name == "scalars.json":
            RunLog.write = write
    assert final_state(tmp_path)["data"]["iteration"] == 4
    assert name in done.stdout and "goes on" in done.stdout
    resumed = train(tmp_path, "--resume", iters=5)
    assert "at iteration 4" in resumed.stdout
    assert final_state(tmp_path)["data"]["iteration"] == 5


def made(path):
    """Put a folder where a log is written."""
    path.unlink(missing_ok=True) if path.is_file() else None
    path.mkdir(exist_ok=True)


class Full:
    """A file on a full disk: /dev/full refuses every byte, as ENOSPC."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.path.rename(self.path.with_suffix(".there"))
        self.path.symlink_to("/dev/full")

    def __exit__(self, *error):
        self.path.unlink()
        self.path.with_suffix(".there").rename(self.path)


def test_a_log_line_that_the_disk_refused_is_written_when_it_takes_it(tmp_path):
    log = RunLog(tmp_path)
    log.start(0)
    values = dict(lr=0.1, skipped=0, batch=4)
    log.make_record(1, {"loss": 1.0}, **values)
    log.write()
    with Full(log.path):
        log.make_record(2, {"loss": 2.0}, **values)
        log.write()
    assert [record["iteration"] for record in scalars(tmp_path)] == [1]
    log.make_record(3, {"loss": 3.0}, **values)
    log.write()
    assert [record["iteration"] for record in scalars(tmp_path)] == [1, 2, 3]


# ---- checkpoints that cannot be written -------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function: size -> a folder that is a file system of that size."""
    mounted = []

    def mount(*options):
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        whole = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if subprocess.run(whole, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # train.log is still open


def test_a_disk_that_becomes_full_ends_in_one_line_and_keeps_what_was_saved(small_disk):
    disk = small_disk("size=16m")
    options = ["checkpoints.interval=1", "checkpoints.keep=99", *QUICK]
    done = train(disk / "run", iters=60, options=options, check=False, process=True)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "No space left" in errors[0] and "free some space" in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    saved = checkpoint.list_checkpoints(disk / "run" / "checkpoints")
    assert len(saved) >= 2
    assert checkpoint.load(saved[-1][1])["data"]["iteration"] == len(saved)


@pytest.mark.slow
def test_a_file_that_may_not_be_so_large_ends_in_one_line(tmp_path):
    """A limit on the size of files, which a user of a cluster meets: the first checkpoint fails."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    whole = command(tmp_path, iters=9)
    how = dict(capture_output=True, text=True, cwd=ROOT, timeout=300, preexec_fn=limit)
    done = subprocess.run(whole, env=environment(), **how)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: could not write" in done.stderr and "File too large" in done.stderr
    assert len(scalars(tmp_path)) == 2, "the checkpoint of a step comes before its log line"


@pytest.mark.parametrize("what", ["a file", "below a file", "checkpoints", "lock"])
def test_what_is_in_the_way_is_named_before_the_first_step(tmp_path, what):
    work_dir = tmp_path / "run"
    if what == "a file":
        work_dir.write_text("mine")
    elif what == "below a file":
        (tmp_path / "file").write_text("mine")
        work_dir = tmp_path / "file" / "run"
    elif what == "checkpoints":
        work_dir.mkdir()
        (work_dir / "checkpoints").write_text("mine")
    else:
        (work_dir / lock.NAME).mkdir(parents=True)
    done = train(work_dir, iters=2, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(work_dir) in done.stderr and "move aside" in done.stderr
    assert "iter 1/2" not in done.stdout


def test_a_read_only_disk_is_named_before_the_first_step(small_disk):
    disk = small_disk("ro", "size=1m")
    done = train(disk / "run", iters=2, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "Read-only file system" in done.stderr and "iter 1/2" not in done.stdout


def test_a_folder_without_permission_is_named_before_the_first_step(tmp_path):
    """As a user who may not write there: root may write anywhere but in /sys."""
    folder = Path("/sys/ahpa") if os.geteuid() == 0 else tmp_path / "closed"
    if os.geteuid():
        folder.mkdir(mode=0o500)
    done = train(folder / "run", iters=2, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(folder) in done.stderr and "--work-dir" in done.stderr


def test_a_lock_that_somebody_removed_is_taken_again_before_the_next_checkpoint(tmp_path):
    lock.take(tmp_path)
    (tmp_path / lock.NAME).unlink()
    lock.keep(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    lock.release(tmp_path)
    assert not (tmp_path / lock.NAME).exists()


@pytest.mark.slow
def test_a_run_whose_lock_was_removed_leaves_the_next_ones_files_alone(tmp_path):
    """The removed lock let a second run in: the first neither saves there nor removes its lock."""
    first = start(tmp_path, iters=100_000, options=["checkpoints.interval=1000000", "hooks=None"])
    wait_for_iteration(tmp_path, 1, first)
    (tmp_path / lock.NAME).unlink()
    lock.take(tmp_path)
    try:
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=120)
        assert first.returncode == 2, out
        assert f"is in use: process {os.getpid()} on" in out.splitlines()[-1]
        assert not list((tmp_path / "checkpoints").glob("*.pth"))
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    finally:
        lock.release(tmp_path)


def test_a_second_start_is_refused_before_it_reads_data(tmp_path):
    """Listing ImageNet and loading an autoencoder take minutes."""
    whole = [os.sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(whole, env=environment(), **pipes)
    assert holder.stdout.readline() == b"taken\n"
    second = train(tmp_path / "run", "--data", tmp_path / "missing", check=False)
    assert f"process {holder.pid} on" in second.stderr, second.stderr
    holder.stdin.close()
    holder.wait()
    third = train(tmp_path / "run", "--data", tmp_path / "missing", check=False)
    assert "there are no images" in third.stderr


def test_what_cannot_be_written_is_told_without_options_that_the_command_has_not(small_disk):
    """`ahpa sample` has neither --work-dir nor --resume."""
    folder = small_disk("size=64k")
    with pytest.raises(UserError) as caught:
        write_file(folder / "a.png", bytes(1 << 20))
    assert "No space left" in str(caught.value) and "free some space" in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.fixture
def few_inodes(tmp_path):
    """A file system with 200 MB and room for 12 files."""
    folder = tmp_path / "few"
    folder.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", "nr_inodes=13,size=200m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(how, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # train.log is still open


def test_a_disk_without_inodes_is_not_told_as_full(few_inodes):
    """No space is left on it, and 200 MB are free: what was saved stays, and a resume goes on."""
    options = ["checkpoints.interval=1", "checkpoints.keep=99", "hooks=None"]
    done = train(few_inodes / "run", iters=12, options=options, check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "could not write" in line and "no inode is left" in line
    assert "free some space" not in line and "--resume" in line
    saved = sorted((few_inodes / "run" / "checkpoints").glob("*.pth"))
    last = torch.load(saved[-1], weights_only=True)["meta"]["iteration"]
    for path in saved[:-1]:
        path.unlink()
    done = train(few_inodes / "run", "--resume", iters=last + 2, options=options)
    assert f"at iteration {last}" in done.stdout
    assert final_state(few_inodes / "run")["meta"]["iteration"] == last + 2


@pytest.mark.parametrize(
    ("files", "left", "told"),
    [(13, 0, "no inode is left"), (13, 5, "free some space"), (0, 0, "free some space")],
)
def test_what_helps_where_no_space_is_left(monkeypatch, tmp_path, files, left, told):
    """A file system such as btrfs counts no files."""
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_files=files, f_favail=left))
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "no" / "a.pth"))
    assert told in remedy(error)
