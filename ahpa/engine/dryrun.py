"""One real training step on synthetic images: the real parts of a config without its data."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..registry.contracts import Losses, Progress
from .assembly import build_model
from .denoiser import AlignedDenoiser
from .optimiser import Optimiser, build_optimizer
from .run_log import peak_memory

BATCH = 2


class DryRun(NamedTuple):
    """What one step showed."""

    model: AlignedDenoiser
    losses: Losses
    seconds: float
    peak_memory_gib: float


def synthetic_batch(model: AlignedDenoiser, *, batch: int = BATCH, seed: int = 0) -> dict[str, Any]:
    """Make a batch of random images at the model's resolution with random labels or prompts."""
    rng = torch.Generator().manual_seed(seed)
    side = model.geometry.resolution
    images = torch.randint(0, 256, (batch, 3, side, side), generator=rng, dtype=torch.uint8)
    return {"image": images, **model.parts.conditioner.example(batch, rng)}


def train_step(
    model: AlignedDenoiser,
    optimiser: Optimiser,
    batch: Mapping[str, Any],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Losses:
    """Compute one optimiser step of one micro-batch: what the trainer's loop does.

    Args:
        model: The model with its frozen parts.
        optimiser: Its optimiser.
        batch: A batch as a data loader gives it.
        seed: Determines t, noise and dropout.
        progress: Where the run stands; by default at its first step.
    """
    rng = torch.Generator(optimiser.device).manual_seed(seed)
    with optimiser.forward_context(model, last=True):
        losses = model(model.parts.encode(batch, rng), rng, progress or Progress())
    optimiser.backward(losses.total)
    optimiser.step()
    model.parts.ema.update(model.backbone)
    return losses


def build_for_steps(cfg: Mapping[str, Any]) -> tuple[AlignedDenoiser, Optimiser]:
    """Build everything that a config names, except its data, for steps of one micro-batch.

    Raises:
        UserError: If weights are missing.
    """
    model = build_model(cfg["model"])
    model.parts.load()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.parts.to(device)
    model.parts.check_scale = False  # the images are noise
    options = {**cfg["optim_wrapper"], "accumulative_counts": 1}
    options["optimizer"] = build_optimizer(options["optimizer"], model)
    return model, Optimiser(**options)


def dry_run(cfg: Mapping[str, Any]) -> DryRun:
    """Build everything that a config names, except its data, and compute one step."""
    torch.manual_seed((cfg.get("randomness") or {}).get("seed", 0))
    model, optimiser = build_for_steps(cfg)
    began = time.perf_counter()
    max_iters = cfg["train_cfg"]["max_iters"]
    losses = train_step(
        model, optimiser, synthetic_batch(model), progress=Progress(0, max_iters, True)
    )
    return DryRun(model, losses, time.perf_counter() - began, peak_memory())
