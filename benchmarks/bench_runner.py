"""What AlignmentRunner costs per iteration over a plain loop: an almost empty model, process time,
one thread."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ahpa.cli import demo
from ahpa.engine import config
from ahpa.engine.optimiser import Optimiser
from ahpa.engine.runner import AlignmentRunner
from ahpa.engine.trainer import TrainOptions
from ahpa.registry.contracts import Losses, Progress
from ahpa.registry.values import Term

ITERATIONS = 3000
LOG_INTERVAL = 100
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "sit-s.py"
BATCH = {"label": torch.zeros(1, dtype=torch.long), "index": torch.zeros(1, dtype=torch.long)}


class Empty(nn.Module):
    """One parameter and one loss: the part of AlignedDenoiser's interface that the loop uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone = nn.Identity()

    def forward(self, clean: Any, rng: torch.Generator, progress: Progress) -> Losses:
        return Losses((Term("flow", (self.weight * 1.0).sum()),))


class NoAverage:
    """An average that averages nothing."""

    def update(self, backbone: nn.Module) -> None:
        pass


class NoParts:
    """Frozen parts that do nothing."""

    ema = NoAverage()

    def encode(self, batch: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        return batch


class Loader:
    """Endless batches of one sample."""

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        while True:
            yield BATCH


def optimiser_of(model: nn.Module) -> Optimiser:
    return Optimiser(optimizer=torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True))


def runner_of(work_dir: Path, start: int) -> AlignmentRunner:
    """Build a real runner without hooks of its own, then give it an almost empty model."""
    cfg = config.load(CONFIG)
    demo.make_small(cfg)
    cfg["hooks"] = {}
    cfg["work_dir"] = str(work_dir)
    cfg["train_dataloader"]["global_batch_size"] = 1
    cfg["model"]["backbone"].update(depth=1, hidden_size=16, num_heads=1)
    config.check_config(cfg)
    runner = AlignmentRunner.from_config(cfg)
    trainer = runner.trainer
    trainer.net = trainer.model = Empty()
    trainer.parts = NoParts()
    trainer.optimiser = optimiser_of(trainer.net)
    trainer.loader = Loader()
    trainer.options = TrainOptions(start + ITERATIONS, LOG_INTERVAL, global_batch_size=1)
    trainer.iteration = start
    runner.save = lambda: work_dir  # a checkpoint is no part of the loop's overhead
    return runner


@pytest.mark.parametrize("start", [0, 400_000], ids=["at the start", "at 400k"])
def test_overhead_per_iteration(benchmark: Any, tmp_path: Path, start: int) -> None:
    runner = runner_of(tmp_path, start)
    began = time.process_time()
    runner.train()
    ours = (time.process_time() - began) / ITERATIONS

    model = Empty()
    optimiser = optimiser_of(model)
    began = time.process_time()
    for _ in range(ITERATIONS):
        with optimiser.forward_context(model, last=True):
            losses = model(BATCH, None, Progress())
        optimiser.backward(losses.total)
        optimiser.step()
    plain = (time.process_time() - began) / ITERATIONS

    assert runner.trainer.iteration == start + ITERATIONS
    assert torch.equal(runner.trainer.net.weight, model.weight)
    micro = {"ours_us": 1e6 * ours, "plain_us": 1e6 * plain, "overhead_us": 1e6 * (ours - plain)}
    benchmark.extra_info.update({name: round(value, 1) for name, value in micro.items()})
    print("\n" + ", ".join(f"{name} {value:.0f}" for name, value in micro.items()))
    benchmark.pedantic(lambda: None, rounds=1)
