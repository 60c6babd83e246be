"""Loading a generator from trained weights. No prior, router or projector is built, so sampling
costs what the plain transformer costs."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..registry import UserError
from ..registry.shapes import shapes_only
from ..sampling.generator import Generator
from .assembly import build_generator_parts
from .weights import read_run, refuse_misfit, refuse_oversized, with_autoencoder


def load_generator(
    source: Path | str,
    *,
    tokenizer: Mapping[str, Any] | None = None,
    vae: str | None = None,
    device: torch.device | str = "cpu",
    weights: str = "ema",
) -> Generator:
    """Load a generator. Nothing that comes with the weights is executed: the config only names
    registered components, and its sizes are compared with the weights before anything is built.

    Args:
        source: A checkpoint, a run's work dir, a published folder or a Hub id.
        tokenizer: Config of a tokenizer that replaces the run's own.
        vae: An autoencoder that replaces the run's own, which keeps the run's normalisation of the
            latents: "bundled", a folder, a file or a Hub id.
        device: Where to sample.
        weights: "ema" for the averaged weights, "model" for the trained ones.

    Raises:
        UserError: If the weights or the tokenizer's weights are missing or do not fit, or if there
            is no such device.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(f"source: must be a path or a Hub id, got {source!r}.")
    if tokenizer is not None and not isinstance(tokenizer, Mapping):
        raise UserError(f"tokenizer: must be a dict(type=..., ...), got {tokenizer!r}.")
    place = device_of(device)
    model, state = read_run(source, weights)
    if vae is not None:
        tokenizer = with_autoencoder(tokenizer or model["tokenizer"], vae)
    if tokenizer is not None:
        model = {**model, "tokenizer": tokenizer}
    refuse_oversized(source, model, len(state))
    # Shapes alone take no memory; a third party's component may not be able to be built so.
    with suppress(RuntimeError), shapes_only():
        refuse_misfit(source, build_generator_parts(model).backbone.state_dict(), state)
    parts = build_generator_parts(model)
    refuse_misfit(source, parts.backbone.state_dict(), state)
    parts.backbone.load_state_dict(state)
    parts.tokenizer.load()
    parts.conditioner.load()
    for part in (parts.tokenizer, parts.conditioner, parts.backbone):
        part.to(place)
        part.eval().requires_grad_(False)
    return Generator(
        tokenizer=parts.tokenizer,
        backbone=parts.backbone,
        flow=parts.flow,
        conditioner=parts.conditioner,
        classes=parts.classes,
    )


def device_of(device: torch.device | str) -> torch.device:
    """Return a device that can be used. Raises UserError for an unknown or missing one."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # whichever the backend raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise UserError(f"device: {device!r} cannot be used ({reason}).") from error
    return found
