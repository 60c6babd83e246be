"""An endless, stateless order of samples with a cursor: the state of a run's data is one number,
the count of samples that all processes have consumed."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from ..registry import UserError
from ..registry.contracts import Dataset
from ..registry.errors import UnreadableSample
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


def _start_quiet_worker(worker: int) -> None:
    warnings.filterwarnings("ignore", category=UnreadableSample)
    _start_worker(worker)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)


class Collate:
    """Makes a batch of items, and adds what the process that read them could not read."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, items: Sequence[Any]) -> tuple[Any, dict[int, str]]:
        """Return the batch, and index -> reason of files that were found unreadable."""
        worker = get_worker_info()
        dataset = self.dataset if worker is None else cast(Dataset, worker.dataset)
        return default_collate(list(items)), dataset.take_problems()


class CursorLoader(DataLoader):
    """torch's DataLoader over a `CursorSampler`.

    `iter(loader)` draws one number from torch's global random state, as every DataLoader does.
    A mistake of the user's that a worker process finds is raised here as it was there, in one line.

    Args:
        dataset: Where the samples come from.
        batch: Samples per iteration of this process.
        seed: Seed of the order.
        rank: Number of this process.
        world: Number of processes.
        start: Samples that all processes have consumed so far.
        num_workers: Processes that read ahead; they do not change the order. 0 reads in this one.
        tell: Called with name -> reason of files found unreadable, instead of a warning for each;
            None leaves the warnings.
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
        tell: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        sampler = CursorSampler(
            size=len(dataset), batch=batch, seed=seed, rank=rank, world=world, start=start
        )
        self.tell = tell
        if tell is not None:
            warnings.filterwarnings("ignore", category=UnreadableSample)
        super().__init__(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=integer("num_workers", num_workers),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=Collate(dataset),
            worker_init_fn=_start_worker if tell is None else _start_quiet_worker,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Start the workers and iterate over the batches.

        Raises:
            UserError: While iterating, if the data cannot be read or a worker process died.
        """
        handler = signal.getsignal(signal.SIGCHLD)
        batches = super().__iter__()
        # torch's own handler raises in the middle of a step when a worker dies, which would leave
        # half a step; without it the next batch tells of it within seconds.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        return self._checked(batches)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches; take note of unreadable files, and raise errors in one line."""
        while True:
            try:
                batch, problems = next(batches)
            except StopIteration:
                return
            except UserError as error:
                self._note(cast(Dataset, self.dataset).take_problems())
                raise type(error)(without_worker(error)) from error
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise UserError(
                    f"a process that reads data died ({str(error).splitlines()[0]}), usually "
                    "because the machine ran out of memory. Continue with --resume, with a "
                    f"smaller train_dataloader.num_workers than {self.num_workers}."
                ) from error
            self._note(problems)
            yield batch

    def _note(self, problems: Mapping[int, str]) -> None:
        if not problems:
            return
        dataset = cast(Dataset, self.dataset)
        if self.tell is not None:
            self.tell({dataset.sample_id(index): reason for index, reason in problems.items()})
        dataset.add_problems(problems)


def without_worker(error: UserError) -> str:
    """Return an error's message without the traceback that torch puts before a worker's errors."""
    message = str(error)
    if "Original Traceback" not in message:
        return message
    kind = f"{type(error).__module__}.{type(error).__qualname__}: "
    return message.rpartition(kind)[2].strip()
