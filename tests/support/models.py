"""Small whole models, and everything that one training step of them computes."""

from typing import NamedTuple

import torch

from ahpa.engine.assembly import build_model
from ahpa.engine.denoiser import AlignedDenoiser
from ahpa.registry.contracts import Losses, Progress, TargetView
from ahpa.sampling.generator import Generator

VIT = dict(  # a vision transformer with random weights; it sees 64 px as 4 x 4 tokens
    type="TimmEncoder",
    model="vit_tiny_patch16_224",
    weights="random",
    precision="fp32",
    options=dict(embed_dim=16, depth=1, num_heads=2),
)
BUNDLED = dict(type="KLAutoencoder", source="bundled")
WORDS = dict(type="TextConditioner", encoder=dict(type="WordEncoder", width=20, length=6))


class Seen(NamedTuple):
    """What one forward pass of a model computed."""

    losses: Losses
    view: TargetView
    features: dict  # {prior: {level: tensor}}

    def weighted(self):
        """{term: weight * value}"""
        return {term.name: term.weight * term.value for term in self.losses.terms}


def small_model(**model) -> AlignedDenoiser:
    """Build a model for 64 px with the bundled tokenizer, and move every trained weight away from
    its initial value (many are zero there)."""
    torch.manual_seed(0)
    own = build_model({"resolution": 64, "tokenizer": BUNDLED, "ema": 0.9, **model})
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return own


def rng_of(seed):
    return torch.Generator().manual_seed(seed)


def compute(model, batch, *, seed=0, progress=None) -> Seen:
    """Compute the losses of a batch as the trainer does, and keep what they were computed from."""
    progress = progress or Progress()
    kept = []
    features = model.parts.features

    def keep(view):
        kept.append((view, features(view)))
        return kept[0][1]

    model.parts.features = keep
    try:
        rng = rng_of(seed)
        losses = model(model.parts.encode(batch, rng), rng, progress)
    finally:
        del model.parts.features  # the method of the class again
    return Seen(losses, *kept[0])


def generator_of(model) -> Generator:
    """Return a generator over the averaged weights."""
    return Generator(
        tokenizer=model.parts.tokenizer,
        backbone=model.parts.ema.backbone,
        flow=model.flow,
        conditioner=model.parts.conditioner,
    )
