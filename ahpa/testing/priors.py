"""The conformance check of a prior, and a toy model to run it in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import PRIORS, TOKENIZERS, build
from ..registry.contracts import (
    WHOLE,
    Backbone,
    BackboneOutput,
    Clean,
    CleanPrior,
    Condition,
    Geometry,
    LevelSpec,
    Noised,
    Path,
    Prior,
    Streams,
    Tap,
    TargetView,
    Tokenizer,
    TokenPlan,
)
from .common import assert_half_precision, random_tensor, toy_geometry
from .tokenizers import check_levels

BUNDLED = {"type": "KLAutoencoder", "source": "bundled"}


def check_prior(
    prior: Mapping[str, Any] | Prior,
    *,
    resolution: int = 64,
    batch: int = 2,
    tokenizer: Mapping[str, Any] | Tokenizer | None = None,
) -> None:
    """Check a prior against its contract.

    Its levels are declared by its constructor and constant; it returns those that are asked for in
    their declared shapes and order, whatever else is asked for, without gradient; it draws from the
    step's generator only; and it asks only for levels that the tokenizer has.

    Args:
        prior: A config, whose type must be registered, or a prior built for `resolution`.
        resolution: Side of the images in pixels.
        batch: Number of images.
        tokenizer: The model's tokenizer or its config; the bundled autoencoder by default.

    Raises:
        AssertionError: If it violates the contract; the message says what is wrong.
    """
    encoder: Tokenizer = build(TOKENIZERS, BUNDLED if tokenizer is None else tokenizer)
    geometry = toy_geometry(
        resolution=resolution,
        downsample=encoder.downsample,
        latent_channels=encoder.latent_channels,
        tokenizer_levels=encoder.levels,
    )
    built: Prior = build(PRIORS, prior, geometry=geometry)
    _check_declaration(built)
    declared = dict(built.levels)
    built.load()
    built.eval().requires_grad_(False)
    model = ToyModel(built.geometry, encoder, batch)
    results = []
    for wanted in (list(declared), list(declared)[:1], list(declared)[-2:]):
        view = model.view(built, wanted)
        features = built(view, wanted)
        check_levels(features, declared, wanted, batch, resolution)
        results.append(features)
        if isinstance(built, CleanPrior):
            check_levels(built.from_clean(view.clean, wanted), declared, wanted, batch, resolution)
    last = list(declared)[-1]
    same = torch.allclose(results[0][last].float(), results[2][last].float(), atol=1e-3)
    assert same, f"level {last!r} changes with what else is asked for, or with the global generator"
    assert dict(built.levels) == declared, "running it changes the levels"
    view = model.view(built, [last])
    assert_half_precision(type(built).__name__, lambda: built(view, [last]))
    probe = built.probe(ToyBackbone(built.geometry))
    if probe is not None:
        probe()


def _check_declaration(prior: Prior) -> None:
    name = type(prior).__name__
    assert isinstance(prior, Prior), f"{name} is not a Prior"
    assert prior.levels, f"{name}.levels must name at least one level after the constructor"
    for level in prior.levels.values():
        assert isinstance(level, LevelSpec), f"{name}.levels: must be LevelSpec, got {level!r}"
    for tap in prior.taps:
        assert isinstance(tap, Tap), f"{name}.taps: must be Tap, got {tap!r}"


class ToyPath(Path):
    """The straight path between data and noise."""

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t = (1 - t) x0 + t eps, and the velocity eps - x0."""
        t = t.view(-1, *[1] * (x0.ndim - 1))
        return (1 - t) * x0 + t * eps, eps - x0

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def to_noise(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return x + (1 - t) v."""
        return x + (1 - t) * pred

    def to_data(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return x - t v."""
        return x - t * pred

    def score(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return minus the noise over t."""
        return -self.to_noise(x, pred, t) / t


class ToyBackbone(Backbone):
    """Linear blocks over the patches of the latent, of the sizes of a geometry.

    Args:
        geometry: The sizes.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.depth = geometry.depth
        self.hidden_size = geometry.width
        self.grid = geometry.grid
        self.prefix = 0
        self.streams = {"image": geometry.streams["image"]}
        self.out_channels = geometry.out_channels
        self.patch = geometry.patch_size
        inputs = geometry.latent_channels * self.patch**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.enter = nn.Linear(inputs, geometry.width)
            layers = (nn.Linear(geometry.width, geometry.width) for _ in range(self.depth))
            self.blocks = nn.ModuleList(layers)

    def forward(
        self,
        x: Streams,
        t: Tensor,
        cond: Any,
        taps: frozenset[Tap] = frozenset(),
        stop: int | None = None,
        plan: TokenPlan = WHOLE,
    ) -> BackboneOutput:
        """Return the tapped blocks; the prediction is the input."""
        patches = nn.functional.unfold(x["image"], self.patch, stride=self.patch)
        h = self.enter(patches.transpose(1, 2)) + t.view(-1, 1, 1)
        found = {}
        for number, layer in enumerate(self.blocks[:stop], 1):
            h = h + torch.tanh(layer(h))
            if Tap(number) in taps:
                found[Tap(number)] = h
        return BackboneOutput(x if stop is None else {}, found, 0, self.grid)

    def blank_cond(self, count: int, device: torch.device | str) -> Tensor:
        """Return class 0 for every sample."""
        return torch.zeros(count, dtype=torch.long, device=device)


class ToyModel:
    """A toy backbone, its average and a batch of random images, for running a prior.

    Args:
        geometry: The sizes.
        tokenizer: The model's tokenizer.
        batch: Number of images.
    """

    def __init__(self, geometry: Geometry, tokenizer: Tokenizer, batch: int = 2) -> None:
        self.tokenizer = tokenizer
        self.backbone = ToyBackbone(geometry)
        self.ema = ToyBackbone(geometry).requires_grad_(False)
        side = geometry.resolution
        stream = torch.Generator().manual_seed(0)
        self.images = torch.rand(batch, 3, side, side, generator=stream)
        self.noise = random_tensor(batch, *geometry.streams["image"], seed=1)
        self.t = torch.linspace(0.2, 0.8, batch)

    def view(self, prior: Prior, levels: Sequence[str], seed: int = 0) -> TargetView:
        """Run a step up to the targets.

        Args:
            prior: The prior that will look at it.
            levels: The levels that will be asked for.
            seed: Seed of the step's generator.
        """
        rng = torch.Generator().manual_seed(seed)
        needed = prior.tokenizer_levels(levels)
        unknown = [name for name in needed if name not in self.tokenizer.levels]
        assert not unknown, f"tokenizer_levels names {unknown}, which the tokenizer does not have"
        encoded = self.tokenizer.encode(self.images, needed)
        assert encoded.mean is not None
        latent = encoded.mean
        clean = Clean(
            streams={"image": latent},
            images=self.images,
            labels=torch.zeros(len(latent), dtype=torch.long),
            levels=encoded.levels,
        )
        path = ToyPath()
        x, target = path.mix(latent, self.noise, self.t)
        noised = Noised(
            x={"image": x},
            t=self.t,
            target={"image": target},
            data=clean.streams,
            noise={"image": self.noise},
            path=path,
        )
        cond = Condition(clean.labels)
        out = self.backbone(noised.x, noised.t, cond.value, taps=prior.taps)
        return TargetView(clean, noised, cond, out, rng, ema=self.ema)
