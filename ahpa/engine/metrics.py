"""Means of losses and diagnostics over the steps and ranks since the last log line.

Values stay on the device until a line is due. What has been summed is part of a checkpoint, so an
interrupted run logs the same figures.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry.contracts import Losses
from .distributed import Processes

SKIPPED = "skipped"  # 1 in the row of a step that the guard skipped


class Metrics:
    """Collects one row per optimiser step, and reduces them when a log line is due.

    Args:
        processes: The ranks over which means are taken.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._current: dict[str, Tensor] = {}
        self._rows: list[dict[str, Tensor]] = []
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, losses: Losses, micro_batches: int) -> None:
        """Add one of the micro-batches of the current step."""
        for name, value in losses.scalars().items():
            share = value if micro_batches == 1 else value / micro_batches
            known = self._current.get(name)
            self._current[name] = share if known is None else known + share

    def end_step(self, *, grad_norm: Tensor, skipped: Tensor) -> dict[str, Tensor]:
        """Close the current step -> its values, {name: 0-d tensor on the device}."""
        row = self._current
        self._rows.append({**row, "grad_norm": grad_norm, SKIPPED: skipped})
        self._current = {}
        return row

    def reduce(self) -> dict[str, float]:
        """Return the means since the last call, over all ranks, without skipped steps.

        Waits for the device once. Every rank must call it at the same step.
        """
        self._read_rows()
        names = sorted(self._sums)
        table = torch.tensor([self._sums[name] for name in names], dtype=torch.float64)
        table = self.processes.sum(table.reshape(len(names), 2))
        order = list(self._sums)
        self._sums = {}
        means = {name: float(row[0] / row[1]) for name, row in zip(names, table, strict=True)}
        return {name: means[name] for name in order}

    def _read_rows(self) -> None:
        """Add the rows to the sums {name: (total, count)} in their order."""
        if not self._rows:
            return
        flat = torch.stack([value.float() for row in self._rows for value in row.values()])
        values = iter(flat.tolist())
        for names in self._rows:
            row = {name: next(values) for name in names}
            if row.pop(SKIPPED):
                continue
            for name, value in row.items():
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value, count + 1)
        self._rows = []

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's sums as plain numbers."""
        self._read_rows()
        return {"sums": {name: list(pair) for name, pair in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = {name: (pair[0], pair[1]) for name, pair in state["sums"].items()}
