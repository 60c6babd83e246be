"""An endless, stateless order of samples with a cursor: where a run stands is one number.

Position p of the stream is sample permutation(seed, p // size)[p % size] of epoch p // size. Iteration i of `world`
processes takes the positions i * world * batch onwards, process r the r-th part; so the order is the same for any
number of processes, and resuming reads nothing twice and skips nothing.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ..registry import LOADERS


def permutation(size: int, seed: int, epoch: int) -> torch.Tensor:
    """A random order of 0..size-1, a function of (seed, epoch)."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randperm(size, generator=torch.Generator().manual_seed(mixed))


class CursorSampler(Sampler):
    """Yields (index, epoch) for one process, for ever, from `start` samples (of all processes) on."""

    def __init__(self, *, size: int, batch: int, seed: int = 0, rank: int = 0, world: int = 1, start: int = 0):
        for name, value, least in (("size", size, 1), ("batch", batch, 1), ("seed", seed, 0), ("world", world, 1),
                                   ("start", start, 0)):  # fmt: skip
            if value != int(value) or value < least:
                raise ValueError(f"CursorSampler: {name} must be a whole number of at least {least}, got {value!r}.")
        if not 0 <= rank < world:
            raise ValueError(f"CursorSampler: rank must be in 0..{world - 1} (world is {world}), got {rank!r}.")
        self.size, self.batch, self.seed, self.rank, self.world, self.start = size, batch, seed, rank, world, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, held, order = self.start + self.rank * self.batch, -1, None
        while True:
            for p in range(position, position + self.batch):
                epoch, offset = divmod(p, self.size)
                if epoch != held:
                    order, held = permutation(self.size, self.seed, epoch), epoch
                yield int(order[offset]), epoch
            position += self.world * self.batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


@LOADERS.register_module()
class CursorLoader(DataLoader):
    """torch's DataLoader over a CursorSampler; `num_workers` processes read ahead without changing the order."""

    def __init__(self, *, dataset, batch: int, seed: int, rank: int, world: int, start: int, num_workers: int = 0):
        sampler = CursorSampler(size=len(dataset), batch=batch, seed=seed, rank=rank, world=world, start=start)
        super().__init__(dataset, batch_size=batch, sampler=sampler, num_workers=num_workers,
                         persistent_workers=num_workers > 0, pin_memory=torch.cuda.is_available(),
                         worker_init_fn=_one_thread)  # fmt: skip
