"""Building networks for their shapes alone: on the meta device, without memory or random draws."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = (
    torch.nn.init.normal_,
    torch.nn.init.trunc_normal_,
    torch.nn.init.uniform_,
    torch.nn.init.constant_,
)


class _NoDraws(TorchFunctionMode):
    """Leaves out the initialisation of weights."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in DRAWS:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


IMPORTS_ITS_COMPILER = (2, 15)
"""The first torch that was seen to import its compiler inside `shapes_only`; 2.6 fails there."""


def _import_compiler() -> None:
    """Import torch's compiler, as libraries of networks do, outside of the context."""
    version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if version < IMPORTS_ITS_COMPILER:
        importlib.import_module("torch._dynamo")


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device. Their weights have no values.

    Without the initialisation a network is built faster, and torch's compiler is not imported,
    which takes two seconds (before torch 2.15 it is).
    """
    _import_compiler()
    with torch.device("meta"), _NoDraws():
        yield
