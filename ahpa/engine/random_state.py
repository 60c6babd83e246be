"""The global random states of this process, as tensors and plain numbers that load safely."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's global generators."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    state: dict[str, Any] = {
        "python": (version, list(words), gauss),
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *[float(x) for x in rest]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    words_uint32 = keys.numpy().astype(np.uint32)
    np.random.set_state((name, words_uint32, int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
