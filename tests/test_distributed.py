"""Two gloo processes through torchrun: one order of samples, equal weights, common stops."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import (
    ROOT,
    assert_same_state,
    command,
    environment,
    final_state,
    scalars,
    stable,
    wait_for_iteration,
)

from ahpa.data.sampler import permutation

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def torchrun(work_dir, *arguments, **options):
    return [*TORCHRUN, *command(work_dir, "--launcher", "pytorch", *arguments, **options)[1:]]


def run(work_dir, *arguments, check=True, **options):
    whole = torchrun(work_dir, *arguments, **options)
    how = dict(capture_output=True, text=True, cwd=ROOT, timeout=300)
    done = subprocess.run(whole, env=environment(), **how)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def start(work_dir, **options):
    how = dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return subprocess.Popen(torchrun(work_dir, **options), env=environment(), **how)


def workers_of(process):
    """Process ids of the two workers that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    own = children.read_text().split()
    if len(own) < 2:  # started by another thread of torchrun
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        own = [pid for thread in threads for pid in (thread / "children").read_text().split()]
    return sorted(int(pid) for pid in own if b"train.py" in cmdline(pid))


def wait_until_gone(pids, seconds=60):
    """Return when no process with one of these ids runs."""
    end = time.time() + seconds
    while time.time() < end:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and cmdline(pid) for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pids} still run after {seconds} s")


def cmdline(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = run(folder, iters=8)
    return folder, done.stdout


def test_two_processes_train_one_model(two):
    folder, out = two
    assert "processes: 2" in out and out.count("iter 8/8") == 1, "only the first process speaks"
    state = final_state(folder)
    assert state["data"]["consumed"] == 32 and len(state["rng"]) == 2
    assert [record["iteration"] for record in scalars(folder)] == list(range(1, 9))


@pytest.mark.slow
def test_kill_9_of_all_then_resume_is_bit_identical(two, tmp_path):
    process = start(tmp_path, iters=8)
    wait_for_iteration(tmp_path, 4, process)
    workers = workers_of(process)
    assert len(workers) == 2
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until_gone(workers)
    done = run(tmp_path, "--resume", iters=8)
    assert "changed since" not in done.stdout
    assert stable(tmp_path) == stable(two[0])
    assert_same_state(final_state(tmp_path), final_state(two[0]))


def test_sigterm_to_one_process_stops_both_at_one_boundary(tmp_path):
    process = start(tmp_path, iters=2000)
    wait_for_iteration(tmp_path, 2, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out[-3000:]
    assert re.search(r"(SIGTERM|another process was asked to stop) at iteration \d+", out)
    assert final_state(tmp_path)["data"]["iteration"] == scalars(tmp_path)[-1]["iteration"] < 2000


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_though_torchrun_itself_returns_1(tmp_path):
    """As docs/runs.md says: torchrun passes the signal on and reports it as a failure."""
    process = start(tmp_path, iters=100_000)
    wait_for_iteration(tmp_path, 2, process)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    assert "SIGTERM at iteration" in out and "checkpoint: " in out
    assert process.returncode == 1
    assert final_state(tmp_path)["data"]["iteration"] == scalars(tmp_path)[-1]["iteration"]


@pytest.mark.slow
def test_a_bad_loss_on_one_process_is_skipped_on_both(tmp_path):
    path = tmp_path / "poisoned.py"
    path.write_text(
        f"_base_ = ['{ROOT}/configs/ahpa_sit-b.py']\n"
        "custom_imports = dict(imports=['support.poison'])\n"
        "_base_.model.flow_loss = dict(type='PoisonFlowLoss', at=[2], rank=1)\n"
    )
    done = run(tmp_path / "run", config=str(path), iters=4)
    (line,) = [line for line in done.stdout.splitlines() if "skipped on all ranks" in line]
    size, batch = 50_000, 2
    positions = range(2 * 2 * batch + batch, 3 * 2 * batch)  # of the second process, third step
    order = permutation(size, 0, 0)
    names = [f"shapes/{int(order[position]):06d}" for position in positions]
    assert re.findall(r"shapes/\d+", line) == names
    assert scalars(tmp_path / "run")[-1]["skipped_steps"] == 1
    state = final_state(tmp_path / "run")
    values = [value for part in ("model", "ema") for value in state[part].values()]
    assert all(value.isfinite().all() for value in values)


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    """With all noise, times and labels equal, two processes of batch 1 take the step of one
    process with batch 2."""
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    how = dict(capture_output=True, text=True, cwd=ROOT, timeout=200)
    done = subprocess.run([*TORCHRUN, str(script)], env=environment(), **how)
    assert done.returncode == 0 and "equal" in done.stdout, done.stdout + done.stderr[-3000:]


CHECK = """
import torch, torch.distributed as dist
from ahpa.engine.optimiser import Optimiser
dist.init_process_group("gloo")
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.linear(x).square().mean()
x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
def step(model, x):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    optimiser = Optimiser(optimizer=optimizer, clip_grad=0.1)
    optimiser.backward(model(x))
    optimiser.step()
    return optimiser.grad_norm
alone, shared = Model(), Model()
wrapped = torch.nn.parallel.DistributedDataParallel(shared)
a, b = step(alone, x), step(wrapped, x[dist.get_rank() : dist.get_rank() + 1])
torch.testing.assert_close(a, b)
torch.testing.assert_close(alone.linear.weight, shared.linear.weight)
print("equal")
del wrapped
dist.barrier()
dist.destroy_process_group()
"""
