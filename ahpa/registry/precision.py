"""The one table of precisions, and the context in which losses and frozen networks compute."""

from contextlib import AbstractContextManager, nullcontext

import torch

from .validation import choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(name: str, precision: str) -> torch.dtype:
    """Return the dtype of 'fp32', 'bf16' or 'fp16'. Raises ConfigError that names the option."""
    return DTYPES[choice(name, precision, tuple(DTYPES))]


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the autocast context of a training or sampling precision; an empty one for 'fp32'."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast; devices without autocast, such as meta, need none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
