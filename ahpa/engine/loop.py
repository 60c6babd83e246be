"""The training loop: one iteration is one optimiser step, made of `accumulative_counts` micro-batches.

Everything random in an iteration comes from `noise_seed`, a function of (seed, rank, iteration, micro-batch), and the
data order is a function of the seed and the count of samples consumed; so a run that was killed goes on exactly.
"""

import time

from mmengine.runner import BaseLoop

from ..registry import LOOPS
from .guard import explain_and_stop

MASK = 2**64 - 1


def noise_seed(seed: int, rank: int, iteration: int, micro: int) -> int:
    """A well-mixed 63-bit seed for one micro-batch of one rank: splitmix64's finaliser after each number (Steele et al.
    2014), in plain integers, which costs a microsecond a step."""
    state = 0
    for number in (seed, rank, iteration, micro):
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


@LOOPS.register_module()
class AlignmentTrainLoop(BaseLoop):
    """Runs `max_iters` optimiser steps, or until a signal asks to stop.

    log_interval: iterations between two readings of losses, norms and the guard (each reading waits for the device).
    """

    def __init__(self, runner, dataloader, *, max_iters: int, log_interval: int = 100):
        super().__init__(runner, dataloader)
        for name, value in (("max_iters", max_iters), ("log_interval", log_interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"train_cfg.{name}: must be a whole number above 0, got {value!r}.")
        self._max_iters, self.log_interval = max_iters, log_interval
        self._iter = self._epoch = 0
        self.consumed = 0  # samples of all ranks
        self.stop_training = False

    max_iters = property(lambda self: self._max_iters)
    iter = property(lambda self: self._iter)
    max_epochs = property(lambda self: 1)
    epoch = property(lambda self: self._epoch)

    def run(self):
        runner = self.runner
        runner.call_hook("before_train")
        runner.model.train()
        batches = iter(self.dataloader)  # draws from the global random state, so that is restored after it
        runner.restore_rng()
        while self._iter < self._max_iters and not runner.stop_agreed():
            self.run_iter(batches)
        runner.call_hook("after_train")
        return runner.model

    def run_iter(self, batches) -> None:
        runner, wrapper = self.runner, self.runner.optim_wrapper
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=None)
        means, indices, count = {}, [], wrapper._accumulative_counts
        began = time.perf_counter()
        for micro in range(count):
            batch = self._prepare(next(batches), micro)
            indices.append(batch.get("index"))
            for name, value in runner.model.train_step(batch, optim_wrapper=wrapper).items():
                value = value.detach() if count == 1 else value.detach() / count
                means[name] = means[name] + value if name in means else value
        wrapper.zero_grad()
        runner.plain_model.update_ema()
        self._iter += 1
        self.consumed += runner.global_batch_size
        runner.last_batch, runner.last_indices = batch, indices
        if wrapper.device.type == "cpu" or self._iter % self.log_interval == 0:
            explain_and_stop(runner)
        outputs = dict(logs=means, seconds=time.perf_counter() - began)
        runner.call_hook("after_train_iter", batch_idx=self._iter - 1, data_batch=None, outputs=outputs)

    def _prepare(self, batch, micro):
        upcoming = self._iter + 1
        return {
            **batch,
            "noise_seed": noise_seed(self.runner.seed, self.runner.rank, self._iter, micro),
            "iteration": self._iter,
            "progress": self._iter / self._max_iters,
            "diagnose": upcoming % self.log_interval == 0 or upcoming == self._max_iters,
        }

    def state_dict(self) -> dict:
        return dict(iteration=self._iter, consumed=self.consumed)

    def load_state_dict(self, state: dict) -> None:
        self._iter, self.consumed = state["iteration"], state["consumed"]
