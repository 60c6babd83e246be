"""Two gloo processes through torchrun: the same samples in the same order, equal weights, skips and stops together."""

import os
import re
import signal
import subprocess
import sys

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


def torchrun(work_dir, *arguments, **options):
    python, *rest = command(work_dir, "--launcher", "pytorch", *arguments, **options)
    return [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *rest]  # fmt: skip


def run(work_dir, *arguments, check=True, **options):
    done = subprocess.run(torchrun(work_dir, *arguments, **options), capture_output=True, text=True, cwd=ROOT,
                          env=environment(), timeout=300)  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


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


def test_kill_9_of_all_then_resume_is_bit_identical(two, tmp_path):
    process = subprocess.Popen(torchrun(tmp_path, iters=8), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    wait_for_iteration(tmp_path, 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(tmp_path)], check=False)
    process.wait()
    run(tmp_path, "--resume", iters=8)
    assert stable(tmp_path) == stable(two[0])
    assert_same_state(final_state(tmp_path), final_state(two[0]))


def test_sigterm_to_one_process_stops_both_at_one_boundary(tmp_path):
    process = subprocess.Popen(torchrun(tmp_path, iters=2000), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    wait_for_iteration(tmp_path, 2, process)
    found = subprocess.run(["pgrep", "-f", f"tools/train.py.*{tmp_path}"], capture_output=True, text=True).stdout
    workers = [int(pid) for pid in found.split() if int(pid) != process.pid]
    assert len(workers) == 2
    subprocess.run(["kill", "-TERM", str(max(workers))], check=True)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out[-3000:]
    assert re.search(r"(SIGTERM|another process) at iteration \d+", out)
    assert final_state(tmp_path)["data"]["iteration"] == scalars(tmp_path)[-1]["iteration"] < 2000


def test_a_bad_loss_on_one_process_is_skipped_on_both(tmp_path):
    path = tmp_path / "poisoned.py"
    path.write_text(
        f"_base_ = ['{ROOT}/configs/ahpa_sit-b.py']\ncustom_imports = dict(imports=['support.poison'])\n"
        "_base_.model.flow_loss = dict(type='PoisonFlowLoss', at=[2], rank=1)\n"
    )
    done = run(tmp_path / "run", config=str(path), iters=4)
    assert "skipped on all ranks" in done.stdout and scalars(tmp_path / "run")[-1]["skipped_steps"] == 1
    state = final_state(tmp_path / "run")
    assert all(value.isfinite().all() for part in ("model", "ema") for value in state[part].values())


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    """With all noise, times and labels equal, two processes of batch 1 take the step of one process with batch 2."""
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
         "--rdzv-endpoint", "localhost:0", str(script)], capture_output=True, text=True, cwd=ROOT, env=environment(),
        timeout=200)  # fmt: skip
    assert done.returncode == 0 and "equal" in done.stdout, done.stdout + done.stderr[-3000:]


CHECK = """
import torch, torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from ahpa.engine.optim import AlignmentOptimWrapper
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
    wrapper = AlignmentOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), clip_grad=0.1)
    wrapper.update_params(model(x))
    return wrapper.grad_norm
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
