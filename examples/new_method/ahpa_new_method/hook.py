"""`TokenNorms`: how large the tokens of each block are, as a table over the run."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa.engine.runner import StatefulHook
from ahpa.registry import HOOKS
from ahpa.registry.contracts import Tap
from ahpa.registry.files import write_file
from ahpa.registry.validation import positive_int, probability

COLUMNS = ("iteration", "block", "mean", "std", "max", "running_mean")
Row = list[float]


@HOOKS.register_module()
class TokenNorms(StatefulHook):
    """Writes the norms of every block's tokens to `<work_dir>/token_norms.csv`.

    Every `interval` iterations the same pictures, noise and labels go through the backbone in
    training, and the table gets a row for each block: mean, standard deviation and maximum of the
    tokens' norms, and a running mean of the means. All rows are part of the checkpoint, so a
    resumed run goes on with the table of the uninterrupted one. The training's random numbers are
    not touched.

    Args:
        interval: Iterations between two measurements.
        pictures: Number of pictures, the first of the data set.
        decay: Decay of the running mean, in [0, 1].
    """

    def __init__(self, *, interval: int = 1000, pictures: int = 4, decay: float = 0.9) -> None:
        self.interval = positive_int("interval", interval)
        self.pictures = positive_int("pictures", pictures)
        self.decay = probability("decay", decay)
        self.rows: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        """Return all rows."""
        return {"rows": torch.tensor(self.rows, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the rows."""
        self.rows = state["rows"].tolist()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Measure if it is due, and write the table."""
        if not self.every_n_train_iters(runner, self.interval) or runner.rank != 0:
            return
        running = {row[1]: row[5] for row in self.rows}  # the last one of each block
        for block, norms in self.measure(runner).items():
            mean = float(norms.mean())
            before = running.get(block, mean)
            smooth = self.decay * before + (1 - self.decay) * mean
            spread, largest = float(norms.std()), float(norms.max())
            self.rows.append([runner.iter + 1, block, mean, spread, largest, smooth])
        self.write(Path(runner.work_dir) / "token_norms.csv")

    @torch.no_grad()
    def measure(self, runner: Any) -> dict[int, Tensor]:
        """Return {block: norms [B, N] of its grid tokens} for the fixed pictures."""
        net, parts = runner.net, runner.parts
        dataset = runner.train_dataloader.dataset
        count = min(self.pictures, len(dataset))
        items = [dataset[index] for index in range(count)]
        batch: dict[str, Any] = torch.utils.data.default_collate(items)
        rng = torch.Generator(parts.device).manual_seed(0)
        clean = parts.encode(batch, rng)
        noised = net.flow.sample(clean.streams, rng)
        cond = parts.conditioner(clean, rng).repeat(noised.views)
        taps = frozenset(Tap(block) for block in range(1, net.backbone.depth + 1))
        was_training = net.backbone.training
        net.backbone.eval()
        out = net.backbone(noised.x, noised.t, cond.value, taps=taps)
        net.backbone.train(was_training)
        found = {}
        for tap in sorted(taps):
            found[tap.block] = out.tokens(tap.block).without_prefix().tokens.float().norm(dim=-1)
        return found

    def write(self, path: Path) -> None:
        """Write the table."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for iteration, block, *values in self.rows:
            writer.writerow([int(iteration), int(block), *(f"{value:.6g}" for value in values)])
        write_file(path, buffer.getvalue().encode())
