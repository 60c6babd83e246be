"""What the Runner costs per iteration over a plain loop: an almost empty model, process time, one thread."""

import time

import pytest
import torch

from ahpa.engine.loop import AlignmentTrainLoop
from ahpa.engine.optim import AlignmentOptimWrapper
from ahpa.engine.progress import Progress

ITERATIONS = 3000


class Empty(torch.nn.Module):
    """One parameter, and the part of AlignedDenoiser's interface that the loop uses."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_step(self, batch, optim_wrapper):
        with optim_wrapper.optim_context(self):
            loss = (self.weight * 1.0).sum()
        optim_wrapper.update_params(loss)
        return {"loss": loss}

    def update_ema(self):
        pass


class FakeRunner:
    """What the loop asks of a runner."""

    seed = rank = 0
    global_batch_size, bad_steps_told, last_indices = 1, 0, []

    def __init__(self, tmp_path):
        self.model = self.plain_model = Empty()
        self.optim_wrapper = AlignmentOptimWrapper(
            optimizer=torch.optim.AdamW(self.model.parameters(), lr=1e-9, fused=True)
        )
        self.work_dir, self.hooks, self.plain_config = str(tmp_path), [Progress()], {}
        self.visualizer = type("Nothing", (), dict(add_scalars=lambda *args, **kwargs: None))()
        self.train_loop = None
        self.max_iters = ITERATIONS

    iter = property(lambda self: self.train_loop.iter)

    def call_hook(self, name, **kwargs):
        for hook in self.hooks:
            if hasattr(hook, name):
                getattr(hook, name)(self, **kwargs)

    def say(self, message):
        pass

    def restore_rng(self):
        pass

    def stop_agreed(self):
        return False


@pytest.mark.parametrize("start", [0, 400_000], ids=["at the start", "at 400k"])
def test_overhead_per_iteration(benchmark, tmp_path, start):
    runner = FakeRunner(tmp_path)
    runner.max_iters = start + ITERATIONS
    batch = {"label": torch.zeros(1, dtype=torch.long), "index": torch.zeros(1, dtype=torch.long)}
    loader = iter([batch] * ITERATIONS)
    loop = AlignmentTrainLoop(runner, loader, max_iters=start + ITERATIONS, log_interval=100)
    loop._iter, runner.train_loop = start, loop
    began = time.process_time()
    loop.run()
    ours = (time.process_time() - began) / ITERATIONS

    model = Empty()
    wrapper = AlignmentOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True))
    began = time.process_time()
    for _ in range(ITERATIONS):
        model.train_step(batch, wrapper)
        wrapper.zero_grad()
    plain = (time.process_time() - began) / ITERATIONS
    assert loop.iter == start + ITERATIONS
    benchmark.extra_info.update(ours_us=round(1e6 * ours, 1), plain_us=round(1e6 * plain, 1))
    print(
        f"\nloop {1e6 * ours:.0f} us, plain {1e6 * plain:.0f} us, overhead {1e6 * (ours - plain):.0f} us an iteration"
    )
    benchmark.pedantic(lambda: None, rounds=1)
