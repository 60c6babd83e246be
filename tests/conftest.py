"""Shared fixtures. One thread a process: results are the same on any machine, and two cores serve
more tests."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared with real data, real networks and the paper's tables; tests that need it skip
    without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.exists():
        pytest.skip("../shared, with real images, weights and the paper's tables, is not there")
    return path
