"""Frozen parts stay frozen, and what a prior returns is compared with what it declared."""

import pytest
import torch
from torch import Tensor, nn

from ahpa.engine.assembly import build_model
from ahpa.engine.dryrun import synthetic_batch, train_step
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.registry import ALIGNMENTS, PRIORS, ConfigError
from ahpa.registry.contracts import (
    Alignment,
    CleanPrior,
    LevelSpec,
    Losses,
    Prior,
    Tap,
)
from ahpa.registry.values import Term

BACKBONE = {"type": "SiT", "depth": 2, "hidden_size": 32, "num_heads": 2, "num_classes": 10}
GROUP = {"type": "StaticRouter", "groups": {"own": ["own"]}}
ALIGNED = {"main": {"tap": 1, "source": "mine", "router": GROUP}}


@PRIORS.register_module(force=True)
class CarelessPrior(CleanPrior):
    """Keeps its network as a plain attribute and forgets torch.no_grad."""

    def __init__(self, *, geometry, channels: int = 8, declared: int = 8, fill=0.0):
        super().__init__(geometry=geometry)
        self.network = nn.Conv2d(3, channels, 16, stride=16)
        self.levels = {"own": LevelSpec(declared, 16)}
        self.fill = fill

    def from_clean(self, clean, levels):
        return {"own": self.network(clean.images) + self.fill}


@ALIGNMENTS.register_module(force=True)
class KeepsAPrior(Alignment):
    """Keeps a frozen part as a submodule, so that the optimiser would take its weights."""

    def __init__(self, *, name, geometry, flow, priors, prior: Prior | None = None):
        super().__init__(name=name, geometry=geometry, flow=flow, priors=priors)
        self.taps = frozenset({Tap(1)})
        self.prior = prior

    def forward(self, view, features, progress):
        return Losses((Term(f"{self.name}/none", view.out.tokens(1).tokens.sum() * 0.0),))

    def summary(self):
        return "block 1"


def model_with(**prior):
    torch.manual_seed(0)
    model = build_model(
        {
            "resolution": 64,
            "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
            "backbone": BACKBONE,
            "priors": {"mine": {"type": "CarelessPrior", **prior}},
            "alignments": ALIGNED,
        }
    )
    model.parts.load()
    return model


def step(model, seed: int = 0) -> Losses:
    optimiser = Optimiser(optimizer=build_optimizer({"type": "AdamW", "lr": 1e-2}, model))
    return train_step(model, optimiser, synthetic_batch(model, seed=seed), seed=seed)


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_a_careless_prior_is_not_trained_and_not_saved():
    model = model_with()
    prior = model.parts.priors["mine"]
    before = weights(prior)
    for seed in range(5):
        step(model, seed)
    assert all(torch.equal(a, b) for a, b in zip(before, prior.parameters(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in prior.parameters())
    assert not any("network" in name for name in model.state_dict())


def test_what_a_prior_returns_carries_no_gradient():
    model = model_with()
    prior = model.parts.priors["mine"].requires_grad_(True)  # as if it had been forgotten
    step(model)
    assert all(p.grad is None for p in prior.parameters())


@PRIORS.register_module(force=True)
class DefiantPrior(CarelessPrior):
    """Turns gradients on for its own network and returns what it computed."""

    def from_clean(self, clean, levels):
        with torch.enable_grad():
            self.network.requires_grad_(True)
            return super().from_clean(clean, levels)


def test_what_a_prior_returns_is_detached_whatever_it_does():
    model = model_with(type="DefiantPrior")
    prior = model.parts.priors["mine"]
    losses = step(model)
    assert losses.total.isfinite()
    assert all(p.requires_grad and p.grad is None for p in prior.parameters())


def test_a_frozen_part_inside_the_trained_model_is_refused():
    prior = PRIORS.get("CarelessPrior")(geometry=model_with().geometry)
    with pytest.raises(ConfigError, match="model.priors.mine: CarelessPrior is a frozen part"):
        build_model(
            {
                "resolution": 64,
                "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
                "backbone": BACKBONE,
                "priors": {"mine": prior},
                "alignments": {"main": {"type": "KeepsAPrior", "prior": prior}},
            }
        )


def test_a_level_of_other_channels_than_declared_is_refused_in_the_first_step():
    with pytest.raises(ConfigError, match=r"model.priors.mine: level 'own' .* 8 channels"):
        step(model_with(channels=16, declared=8))


def test_a_level_that_is_not_finite_is_refused_in_the_first_step():
    with pytest.raises(ConfigError, match="model.priors.mine: level 'own' has values"):
        step(model_with(fill=float("nan")))


def test_the_state_dict_is_exactly_what_is_trained():
    model = model_with()
    trained = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == trained
    assert {name.split(".")[0] for name in trained} == {"backbone", "alignments"}


def test_stored_features_replace_the_prior():
    model = model_with()
    batch = synthetic_batch(model)
    stored = torch.randn(2, 8, 4, 4)
    seen = {}

    class Spy(nn.Module):
        def forward(self, view, features, progress):
            seen.update(features)
            return Losses()

        def ended(self, progress):
            return False

    model.alignments["main"] = Spy()
    rng = torch.Generator().manual_seed(0)
    from ahpa.registry.contracts import Progress

    clean = model.parts.encode({**batch, "features": {"mine": {"own": stored}}}, rng)
    model(clean, rng, Progress())
    assert torch.equal(seen["mine"]["own"], stored)
