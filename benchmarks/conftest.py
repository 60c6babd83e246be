"""Shared parts of the benchmarks: one thread, a real model at a stated size, features given.

    pytest benchmarks --benchmark-enable            (or: make bench)

Ratios compare cases of one run on one machine; each speed figure has an accuracy check in the same
test.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from ahpa.engine.assembly import build_model
from ahpa.engine.denoiser import AlignedDenoiser

SMALL = {"type": "SiT", "depth": 12, "hidden_size": 384, "num_heads": 6}  # SiT-S/2
ALIGNMENT = {"tap": 3, "source": "vae", "router": {"type": "MLPRouter", "groups": "4/4"}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that process time is comparable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def denoiser(**changes: Any) -> AlignedDenoiser:
    """Build SiT-S/2 at 256 px with the bundled autoencoder and AHPA on block 3.

    Args:
        **changes: Sections of the model config that replace these.
    """
    cfg = {
        "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
        "backbone": dict(SMALL),
        "priors": {"vae": {"type": "VAETaps"}},
        "alignments": {"main": ALIGNMENT},
    }
    torch.manual_seed(0)
    return build_model({**cfg, **changes})


def bare_denoiser() -> AlignedDenoiser:
    """Build the same model without an alignment."""
    return denoiser(priors={}, alignments={})


def given_batch(model: AlignedDenoiser, batch: int = 4) -> dict[str, Any]:
    """Make random latents [B, 4, 32, 32], labels and every level that the alignments read."""
    rng = torch.Generator().manual_seed(0)
    shape = (batch, *model.geometry.streams["image"])
    latent = {"mean": torch.randn(shape, generator=rng), "std": torch.full(shape, 0.1)}
    side = model.geometry.resolution
    features: dict[str, dict[str, torch.Tensor]] = {}
    for name, prior in model.parts.priors.items():
        features[name] = {}
        for level in model.parts.wanted[name]:
            spec = prior.levels[level]
            size = (batch, spec.channels, side // spec.stride, side // spec.stride)
            features[name][level] = torch.randn(size, generator=rng)
    label = torch.randint(0, 1000, (batch,), generator=rng)
    return {"latent": latent, "features": features, "label": label}


def report_ratio(
    benchmark: Any, times: Mapping[str, Sequence[float]], slow: str, fast: str
) -> None:
    """Put the medians of two cases and their ratio into the report.

    Args:
        benchmark: pytest-benchmark's fixture; it times nothing more itself.
        times: {case: seconds of each round}; the first round is warm-up.
        slow: The case that is divided.
        fast: The case by which it is divided.
    """
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratio = medians[slow] / medians[fast]
    shown = {f"{name}_ms": round(1e3 * value, 3) for name, value in medians.items()}
    benchmark.extra_info.update(shown, ratio=round(ratio, 3))
    print(f"\n{slow} / {fast} = {ratio:.3f}  {shown}")
    benchmark.pedantic(lambda: None, rounds=1)
