"""Building networks for their shapes alone: on the meta device, without memory or random draws."""

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


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device. Their weights have no values.

    Without the initialisation a network is built faster, and torch's compiler is not imported,
    which takes two seconds.
    """
    with torch.device("meta"), _NoDraws():
        yield
