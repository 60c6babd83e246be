"""An endless, stateless order of samples with a cursor: the state of a run's data is one number,
the count of samples that all processes have consumed."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..registry.contracts import Dataset
from ..registry.validation import integer, positive_int


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """Return a random order of 0..size-1, int64 [size]: a function of (seed, epoch)."""
    words = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    mixed = int(words[0] >> np.uint64(1))
    return torch.randperm(size, generator=torch.Generator().manual_seed(mixed))


class CursorSampler(Sampler):
    """Yields (index, epoch) for one process, endlessly.

    Position p of the stream is sample `permutation(size, seed, e)[p % size]`, where e = p // size
    is the epoch. Iteration i takes the positions from i * world * batch onwards, of which process r
    takes the r-th part. The order is thus the same for any number of processes, and a resumed run
    reads nothing twice and skips nothing.

    Args:
        size: Number of samples in the dataset.
        batch: Samples per iteration of this process.
        seed: Seed of the order.
        rank: Number of this process, in 0..world-1.
        world: Number of processes.
        start: Position to start from: the samples that all processes have consumed.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        size: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        self.size = positive_int("CursorSampler.size", size)
        self.batch = positive_int("CursorSampler.batch", batch)
        self.seed = integer("CursorSampler.seed", seed)
        self.world = positive_int("CursorSampler.world", world)
        self.rank = integer("CursorSampler.rank", rank, most=world - 1)
        self.start = integer("CursorSampler.start", start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.start + self.rank * self.batch
        order_epoch = -1
        while True:
            for position in range(first, first + self.batch):
                epoch, offset = divmod(position, self.size)
                if epoch != order_epoch:
                    order = permutation(self.size, self.seed, epoch)
                    order_epoch = epoch
                yield int(order[offset]), epoch
            first += self.world * self.batch


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class CursorLoader(DataLoader):
    """torch's DataLoader over a `CursorSampler`.

    `iter(loader)` draws one number from torch's global random state, as every DataLoader does.

    Args:
        dataset: Where the samples come from.
        batch: Samples per iteration of this process.
        seed: Seed of the order.
        rank: Number of this process.
        world: Number of processes.
        start: Samples that all processes have consumed so far.
        num_workers: Processes that read ahead; they do not change the order. 0 reads in this one.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        batch: int,
        seed: int,
        rank: int,
        world: int,
        start: int,
        num_workers: int = 0,
    ) -> None:
        sampler = CursorSampler(
            size=len(dataset), batch=batch, seed=seed, rank=rank, world=world, start=start
        )
        super().__init__(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=integer("num_workers", num_workers),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_use_one_thread,
        )
