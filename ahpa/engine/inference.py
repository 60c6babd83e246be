"""Loading a generator from trained weights. No prior, router or projector is built, so sampling
costs what the plain transformer costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..registry import UserError
from ..sampling.generator import Generator
from .assembly import build_generator_parts
from .weights import read_run, with_autoencoder


def load_generator(
    source: Path | str,
    *,
    tokenizer: Mapping[str, Any] | None = None,
    vae: str | None = None,
    device: torch.device | str = "cpu",
    weights: str = "ema",
) -> Generator:
    """Load a generator. The config that comes with the weights is data; nothing is executed.

    Args:
        source: A checkpoint, a run's work dir, a published folder or a Hub id.
        tokenizer: Config of a tokenizer that replaces the run's own.
        vae: An autoencoder that replaces the run's own, which keeps the run's normalisation of the
            latents: "bundled", a folder, a file or a Hub id.
        device: Where to sample.
        weights: "ema" for the averaged weights, "model" for the trained ones.

    Raises:
        UserError: If the weights or the tokenizer's weights are missing or do not fit.
    """
    model, state = read_run(source, weights)
    if vae is not None:
        tokenizer = with_autoencoder(tokenizer or model["tokenizer"], vae)
    if tokenizer is not None:
        model = {**model, "tokenizer": tokenizer}
    parts = build_generator_parts(model)
    try:
        parts.backbone.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: the weights do not fit the backbone of its config: {reason}"
        ) from error
    parts.tokenizer.load()
    parts.conditioner.load()
    for part in (parts.tokenizer, parts.conditioner, parts.backbone):
        part.to(device)
        part.eval().requires_grad_(False)
    return Generator(
        tokenizer=parts.tokenizer,
        backbone=parts.backbone,
        flow=parts.flow,
        conditioner=parts.conditioner,
    )
