"""What is logged: means over micro-batches, steps and ranks, without skipped steps."""

import pytest
import torch

from ahpa.engine.distributed import Processes
from ahpa.engine.metrics import Metrics
from ahpa.registry.contracts import Losses
from ahpa.registry.values import Term


class Both(Processes):
    """The first of two ranks: sums are taken with what the other rank would send."""

    def __init__(self, other):
        super().__init__(rank=0, world=2)
        self.other = other

    def sum(self, values):
        return values + self.other


def losses(value, **diagnostics):
    terms = (Term("flow", torch.tensor(value)), Term("main/cosine", torch.tensor(2.0), 0.5))
    return Losses(terms, {name: torch.tensor(x) for name, x in diagnostics.items()})


def step(metrics, *values, norm=1.0, skipped=0.0, **diagnostics):
    for value in values:
        metrics.add(losses(value, **diagnostics), len(values))
    return metrics.end_step(grad_norm=torch.tensor(norm), skipped=torch.tensor(skipped))


def test_a_step_is_the_mean_of_its_micro_batches():
    row = step(Metrics(Processes()), 1.0, 4.0, figure=6.0)
    wanted = {
        "loss": 2.5 + 0.5 * 2.0,
        "loss/flow": 2.5,
        "loss/main/cosine": 1.0,
        "flow": 2.5,
        "main/cosine": 2.0,
        "figure": 6.0,
    }
    assert {name: float(value) for name, value in row.items()} == wanted


def test_a_line_is_the_mean_of_the_finite_steps_since_the_last_line():
    metrics = Metrics(Processes())
    step(metrics, 1.0, norm=3.0)
    step(metrics, float("nan"), norm=float("inf"), skipped=1.0)
    step(metrics, 5.0, norm=5.0)
    first = metrics.reduce()
    assert (first["flow"], first["grad_norm"]) == (3.0, 4.0)
    step(metrics, 7.0)
    assert metrics.reduce()["flow"] == 7.0
    assert metrics.reduce() == {}


def test_a_figure_that_is_not_in_every_step_is_the_mean_of_its_own():
    metrics = Metrics(Processes())
    step(metrics, 1.0)
    step(metrics, 3.0, figure=4.0)
    means = metrics.reduce()
    assert (means["flow"], means["figure"]) == (2.0, 4.0)


def test_means_are_over_all_ranks():
    """Two steps here, with 1 and 2; the other rank sends the sums and counts of two of its own."""
    names = sorted(["flow", "grad_norm", "loss", "loss/flow", "loss/main/cosine", "main/cosine"])
    sent = {"flow": 9.0, "grad_norm": 3.0, "loss/flow": 9.0, "loss": 11.0}
    other = torch.tensor([[sent.get(name, 4.0), 2.0] for name in names], dtype=torch.float64)
    metrics = Metrics(Both(other))
    step(metrics, 1.0)
    step(metrics, 2.0)
    means = metrics.reduce()
    assert list(means) == ["loss", *names[3:5], "flow", "main/cosine", "grad_norm"]
    assert means["flow"] == means["loss/flow"] == (1 + 2 + 9) / 4
    assert means["loss"] == (2 + 3 + 11) / 4
    assert means["grad_norm"] == (1 + 1 + 3) / 4
    assert means["main/cosine"] == (2 + 2 + 4) / 4


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_checkpoint_holds_what_has_been_summed(steps):
    whole, saved, resumed = (Metrics(Processes()) for _ in range(3))
    for number in range(steps):
        step(whole, float(number))
        step(saved, float(number))
    resumed.load_state_dict(saved.state_dict())
    for metrics in (whole, resumed):
        step(metrics, 10.0)
    assert resumed.reduce() == whole.reduce()
