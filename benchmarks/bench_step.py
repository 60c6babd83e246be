"""The training step by part: forward, alignment branch, backward, optimiser tail; and the cost of
AHPA with features given."""

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ahpa.engine.denoiser import AlignedDenoiser
from ahpa.engine.dryrun import train_step
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.registry.contracts import Losses, Progress, TargetView

from .conftest import bare_denoiser, denoiser, given_batch, report_ratio

ADAMW = {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def model() -> AlignedDenoiser:
    return denoiser()


@pytest.fixture(scope="module")
def batch(model: AlignedDenoiser) -> dict[str, Any]:
    return given_batch(model)


def optimiser_of(model: AlignedDenoiser) -> Optimiser:
    return Optimiser(optimizer=build_optimizer(ADAMW, model))


def losses_of(model: AlignedDenoiser, batch: dict[str, Any]) -> Losses:
    rng = torch.Generator().manual_seed(1)
    return model(model.parts.encode(batch, rng), rng, Progress())


def set_gradients(module: nn.Module, seed: int) -> None:
    """Fill all gradients with N(0, 1e-3)."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=rng)


def process_time(call: Callable[[], Any]) -> float:
    """Return the processor time of a call in seconds."""
    began = time.process_time()
    call()
    return time.process_time() - began


def test_forward(benchmark: Any, model: AlignedDenoiser, batch: dict[str, Any]) -> None:
    losses = benchmark(losses_of, model, batch)
    assert all(value.isfinite() for value in losses.scalars().values())


def test_alignment_branch(benchmark: Any, model: AlignedDenoiser, batch: dict[str, Any]) -> None:
    """Router, target, projector and cosine, forward only, from given features and tokens."""
    rng = torch.Generator().manual_seed(1)
    clean = model.parts.encode(batch, rng)
    noised = model.flow.sample(clean.streams, rng)
    cond = model.parts.conditioner(clean, rng)
    out = model.backbone(noised.x, noised.t, cond.value, taps=model.taps)
    view = TargetView(clean, noised, cond, out, rng)
    features = model.parts.features(view)
    losses = benchmark(model.alignments["main"], view, features, Progress())
    (term,) = losses.terms
    assert term.name == "main/cosine"
    assert 0 < float(term.value) < 2


def test_backward(benchmark: Any, model: AlignedDenoiser, batch: dict[str, Any]) -> None:
    def setup() -> tuple[tuple[torch.Tensor], dict[str, Any]]:
        model.zero_grad()
        return (losses_of(model, batch).total,), {}

    benchmark.pedantic(lambda loss: loss.backward(), setup=setup, rounds=5)
    assert all(p.grad is not None for p in model.parameters())


def test_optimiser_tail(benchmark: Any, model: AlignedDenoiser) -> None:
    """Norm, clip, guard, fused AdamW and EMA."""
    optimiser = optimiser_of(model)

    def tail() -> None:
        optimiser.step()
        model.parts.ema.update(model.backbone)

    benchmark.pedantic(tail, setup=lambda: set_gradients(model, seed=0), rounds=20)
    assert int(optimiser.bad_total) == 0


def plain_tail(
    backbone: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module, decay: float = 0.9999
) -> None:
    """Do what the field's scripts do: clip_grad_norm_, AdamW with its defaults, and a loop over the
    parameters for the EMA."""
    torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
    optimizer.step()
    pairs = zip(ema.named_parameters(), backbone.named_parameters(), strict=True)
    with torch.no_grad():
        for (_, average), (_, value) in pairs:
            average.mul_(decay).add_(value.data, alpha=1 - decay)


def test_ratio_of_the_tail_to_the_plain_one(benchmark: Any) -> None:
    """A B A B interleaved, process time, median; the weights and the EMA must agree."""
    ours = bare_denoiser()
    theirs = copy.deepcopy(ours.backbone)
    ema = copy.deepcopy(theirs)
    optimiser = optimiser_of(ours)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.0)
    average = ours.parts.ema

    def our_tail() -> None:
        optimiser.step()
        average.update(ours.backbone)

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(9):
        set_gradients(ours.backbone, turn)
        set_gradients(theirs, turn)
        times["ours"].append(process_time(our_tail))
        times["plain"].append(process_time(lambda: plain_tail(theirs, optimizer, ema)))
    for a, b in zip(ours.backbone.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(average.backbone.parameters(), ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    report_ratio(benchmark, times, "plain", "ours")


def test_ratio_of_ahpa_to_the_bare_step_with_features_given(benchmark: Any) -> None:
    """A whole step of SiT-S/2 with AHPA's branch (features given) against the same without it."""
    models = {"ahpa": denoiser(), "bare": bare_denoiser()}
    batches = {name: given_batch(model) for name, model in models.items()}
    optimisers = {name: optimiser_of(model) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(7):
        for name, model in models.items():
            began = time.process_time()
            losses = train_step(model, optimisers[name], batches[name], seed=turn)
            times[name].append(time.process_time() - began)
            assert losses.total.isfinite()
    report_ratio(benchmark, times, "ahpa", "bare")
