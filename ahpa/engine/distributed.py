"""Several processes: joining them, agreeing on a flag, and means over all ranks."""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..registry import UserError

Result = TypeVar("Result")

LAUNCHERS = ("none", "pytorch", "slurm")
STORE_TIMEOUT = timedelta(seconds=5)  # for torchrun's store to answer


@contextmanager
def alive() -> Iterator[None]:
    """Turn the RuntimeError of an exchange with a process that has died into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this command has ended (killed, perhaps for lack of memory) or no "
            "longer answers; its own message says why. What is written stays: start it again."
        ) from error


class Processes:
    """This process's place among all processes of a run; a single process needs no launcher.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
        control: Group for small messages between hosts (gloo), or None for a single process.
    """

    def __init__(self, *, rank: int = 0, world: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.world = world
        self.control = control

    @classmethod
    def start(cls, launcher: str) -> "Processes":
        """Join the process group of "pytorch" (torchrun) or "slurm"; "none" is a single process.

        The group is left when the process exits.

        Raises:
            UserError: If the launcher's environment is missing.
        """
        if launcher == "none":
            return cls()
        if not dist.is_initialized():
            gpu = torch.cuda.is_available()
            if gpu or launcher == "slurm":
                from mmengine.dist import init_dist

                init_dist(launcher, backend="nccl" if gpu else "gloo")
            else:
                if "RANK" not in os.environ:
                    raise UserError(
                        "--launcher pytorch must be started by torchrun: "
                        "torchrun --nproc-per-node N tools/train.py ..."
                    )
                dist.init_process_group("gloo")
            atexit.register(leave)
        control = dist.new_group(backend="gloo")
        return cls(rank=dist.get_rank(), world=dist.get_world_size(), control=control)

    @property
    def several(self) -> bool:
        """Whether there is more than one process, or a launcher started a single one."""
        return self.control is not None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all get the same answer."""
        if not self.several:
            return flag
        agreed = torch.tensor([int(flag)])
        with alive():
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self.control)
        return bool(agreed.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over all processes."""
        if self.several:
            with alive():
                dist.all_reduce(values, group=self.control)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Collect a picklable value of every process, in the order of the ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world
        with alive():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the first process's value on every process."""
        if not self.several:
            return value
        values = [value]
        with alive():
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def on_first(self, action: Callable[[], Result]) -> Result:
        """Do something on the first process alone and return its result on all.

        Raises:
            UserError: On every process, if the action raised it, so that none waits for the others.
        """
        result: Any = None
        if self.rank == 0:
            try:
                result = action()
            except UserError as error:
                result = error
        result = self.from_first(result)
        if isinstance(result, UserError):
            raise result
        return result

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.several:
            with alive():
                dist.barrier(group=self.control)


def leave() -> None:
    """Leave the process group, unless something else has done so."""
    if dist.is_initialized():
        dist.destroy_process_group()


def first_to_say(text: str) -> bool:
    """Whether no other process that torchrun started together with this one has said a text yet.

    All processes make the same mistake, often before they are joined. So they ask torchrun's own
    store, which outlives them. If it does not answer, each may speak.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = f"ahpa/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{digest}"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
        )
        return bool(store.add(key, 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True
