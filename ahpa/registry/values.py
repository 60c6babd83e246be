"""The values that pass between the parts: frozen, so that nobody fills in what others rely on.

Shapes: B batch (views included), C channels, N = h * w grid tokens, P prefix tokens, D width,
H heads. Conventions, stated here once: t = 1 is noise and t = 0 is data; block k is the k-th
transformer block, counted from 1; images are uint8 [B, 3, H, W] in a batch and float32 in [0, 1]
everywhere else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .errors import ConfigError
from .numerics import gather_tokens, per_pixel

if TYPE_CHECKING:
    from .contracts import Backbone, Path

Streams = dict[str, Tensor]  # what diffuses: {'image': [B, C, h, w], ...}
Features = dict[str, Tensor]  # level name -> [B, C, h, w], [B, C] or [B, H, N, N], shallow -> deep

TAP_KINDS = ("tokens", "attention", "keys", "values")


class LevelSpec(NamedTuple):
    """Shape of one level of a prior, known without running the prior.

    Attributes:
        channels: Number of channels C (of heads H for attention logits).
        stride: Pixels per feature; 0 for a vector [B, C].
        attention: Whether the level holds attention logits [B, H, N, N] over the token grid.
    """

    channels: int
    stride: int
    attention: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether the level is a vector [B, C], such as a class token."""
        return self.stride == 0

    @property
    def is_map(self) -> bool:
        """Whether the level is a feature map [B, C, h, w]."""
        return self.stride > 0 and not self.attention


class Tap(NamedTuple):
    """What an alignment or a prior reads from the backbone.

    Attributes:
        block: Block number, from 1.
        kind: "tokens" (block output [B, P+N, D]), "attention" (logits q k^T / sqrt(d)
            [B, H, P+N, P+N]), "keys" or "values" ([B, H, P+N, D/H]).
    """

    block: int
    kind: str = "tokens"


class TokenRoute(NamedTuple):
    """A route past a stretch of blocks, which a part of the grid tokens takes in training (TREAD,
    arXiv:2501.04765). Prefix tokens and text tokens never take it.

    Attributes:
        kept: Ids of the grid tokens that stay in the blocks, [B, K] in ascending order; the other
            tokens come back unchanged after block `last`.
        first: First block of the stretch, from 1.
        last: Last block of the stretch; the tap of this block still holds the kept tokens alone.
    """

    kept: Tensor
    first: int
    last: int

    def skips(self, block: int) -> bool:
        """Whether the block holds the kept tokens alone."""
        return self.first <= block <= self.last


class TokenPlan(NamedTuple):
    """Which grid tokens are in a block, and which of them attend to each other.

    Without a route and groups every token is in every block and attends to all others.

    Attributes:
        route: The tokens that skip a stretch of blocks.
        groups: Group ids [B, N]; a token attends only to the tokens of its own group.
    """

    route: TokenRoute | None = None
    groups: Tensor | None = None


PLAN_KINDS = TokenPlan._fields
WHOLE = TokenPlan()  # every token in every block


class Tokens(NamedTuple):
    """Tokens [B, P+N, D], of which the first `prefix` = P do not belong to the grid (h, w).

    If some grid tokens skip the block they are [B, P+K, D], and `ids` [B, K] says which grid
    tokens are left, by their place 0..N-1 in row-major order.
    """

    tokens: Tensor
    prefix: int
    grid: tuple[int, int]
    ids: Tensor | None = None

    def without_prefix(self) -> "Tokens":
        """Return the grid tokens alone, [B, N, D] (or [B, K, D])."""
        return Tokens(self.tokens[:, self.prefix :], 0, self.grid, self.ids)

    def as_map(self) -> Tensor:
        """Return the grid tokens as a feature map [B, D, h, w]. Raises ConfigError if tokens are
        missing."""
        self.require_all("a feature map")
        return self.tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)

    def require_all(self, reader: str) -> None:
        """Raise ConfigError if grid tokens are missing; `reader` says what needs them."""
        if self.ids is not None:
            count = self.grid[0] * self.grid[1]
            raise ConfigError(
                f"model.token_routing: {reader} needs all {count} grid tokens, but "
                f"{count - self.ids.shape[1]} of them skip the tapped block. Tap a block outside "
                "the route, or use parts that read each token by itself (such as MLPProjector)."
            )

    def gather_from(self, whole: Tensor) -> Tensor:
        """Return the rows of [B, P+N, C] that belong to these tokens, [B, P+K, C]."""
        if self.ids is None:
            return whole
        return gather_tokens(whole, self.ids, self.prefix)


class BackboneOutput(NamedTuple):
    """What a backbone returns.

    Attributes:
        pred: The prediction of each stream, float32; empty if the backbone was stopped early.
        taps: The requested taps; see `Tap` for their shapes.
        prefix: Number of prefix tokens P in the taps.
        grid: Token grid (h, w).
        route: The route that a part of the tokens took, if any.
    """

    pred: Streams
    taps: dict[Tap, Tensor]
    prefix: int
    grid: tuple[int, int]
    route: TokenRoute | None = None

    def tokens(self, block: int) -> Tokens:
        """Return the output of block `block` (from 1), which must have been tapped."""
        route = self.route
        ids = route.kept if route is not None and route.skips(block) else None
        return Tokens(self.taps[Tap(block)], self.prefix, self.grid, ids)


class TextCond(NamedTuple):
    """A text condition: `tokens` [B, T, W], and `pooled` [B, P] if the backbone takes one."""

    tokens: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Condition:
    """What the backbone is conditioned on in one training step.

    Attributes:
        value: Labels [B] or a `TextCond`; passed to the backbone unchanged.
        dropped: [B] bool, True where the null condition stands in for the sample's own.
    """

    value: Any
    dropped: Tensor | None = None

    def repeat(self, views: int) -> "Condition":
        """Repeat the condition along the batch, once per view."""
        if views == 1:
            return self
        return Condition(repeat(self.value, views), repeat(self.dropped, views))


def repeat(value: Any, views: int) -> Any:
    """Repeat a tensor, or a tuple of tensors and Nones, `views` times along the batch."""
    if views == 1 or value is None:
        return value
    if isinstance(value, Tensor):
        return torch.cat([value] * views)
    return type(value)(*(repeat(part, views) for part in value))


class Encoded(NamedTuple):
    """One pass of a tokenizer's encoder.

    Attributes:
        mean: Posterior mean [B, C, h, w] in the diffusion's scale; None if not asked for.
        std: Posterior standard deviation, shaped as the mean; None if not asked for.
        levels: The encoder levels that were asked for.
    """

    mean: Tensor | None
    std: Tensor | None
    levels: Features

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """Draw a latent [B, C, h, w] from the posterior."""
        mean, std = self.mean, self.std
        assert mean is not None and std is not None, "this pass was asked for levels only"
        noise = torch.randn(mean.shape, generator=rng, device=mean.device, dtype=mean.dtype)
        return mean + std * noise


@dataclass(frozen=True)
class Clean:
    """An encoded batch before any noise: the input of the trained model. Carries no gradient.

    Attributes:
        streams: The clean data of every stream, {'image': [B, C, h, w], ...}.
        images: [B, 3, H, W] float32 in [0, 1]; None if the batch holds stored latents only.
        labels: Class labels [B]; None for a text-conditioned model.
        captions: B strings; None for a class-conditioned model.
        levels: Levels of the tokenizer's own encoder pass, as requested by the priors.
        features: Features of priors that are known already: {prior: {level: tensor}}, either stored
            in the batch or computed for a stream.
        batch: The batch as the data loader gave it, for parts that need more of it.
    """

    streams: Streams
    images: Tensor | None = None
    labels: Tensor | None = None
    captions: Sequence[str] | None = None
    levels: Features = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    batch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Noised:
    """A noised batch.

    Attributes:
        x: The noised streams.
        t: Time in [0, 1], [B]; or [B, N], one for each grid token.
        target: What the network's prediction is compared with, for each stream.
        data: The clean streams, repeated if there are several views.
        noise: The noise of each stream.
        path: The path that mixed data and noise.
        views: How often each image is in the batch: the whole batch once, then once more, ...
        groups: Group ids of the grid tokens [B, N], if each group has a time of its own.
        separate: Whether tokens attend only to tokens of their own group.
    """

    x: Streams
    t: Tensor
    target: Streams
    data: Streams
    noise: Streams
    path: "Path"
    views: int = 1
    groups: Tensor | None = None
    separate: bool = False

    @property
    def attention_groups(self) -> Tensor | None:
        """The groups [B, N] within which tokens attend; None if all attend to all."""
        return self.groups if self.separate else None

    @property
    def sample_t(self) -> Tensor:
        """One time per sample [B]: `t` itself, or its mean over the tokens."""
        return self.t if self.t.ndim == 1 else self.t.mean(1)

    def at(self, t: Tensor, grid: tuple[int, int]) -> Streams:
        """Mix the same data and the same noise at other times, [B] or [B, N] on the token grid."""
        mixed: Streams = {}
        for name, x0 in self.data.items():
            mixed[name], _ = self.path.mix(x0, self.noise[name], per_pixel(t, grid, x0))
        return mixed


class Progress(NamedTuple):
    """Where a run stands when a step is computed.

    Attributes:
        iteration: Optimiser steps done so far, from 0.
        max_iters: Optimiser steps of the whole run.
        diagnose: Whether the diagnostics of this step will be shown.
    """

    iteration: int = 0
    max_iters: int = 1
    diagnose: bool = False

    @property
    def share(self) -> float:
        """Share of the run that is done, in [0, 1): 0 in the first step."""
        return self.iteration / self.max_iters


@dataclass(frozen=True)
class TargetView:
    """What flow losses, priors and alignments may look at in one step. Read-only.

    Attributes:
        clean: The encoded batch.
        noised: The noised batch.
        cond: The condition, repeated for the views; a teacher shares its dropout.
        out: The backbone's output for the noised batch.
        rng: The step's only source of randomness.
        progress: Where the run stands.
        plan: The student's plan of tokens.
        ema: The averaged backbone, float32 and frozen; None if the model is used without one.
    """

    clean: Clean
    noised: Noised
    cond: Condition
    out: BackboneOutput
    rng: torch.Generator | None = None
    progress: Progress = field(default_factory=Progress)
    plan: TokenPlan = WHOLE
    ema: "Backbone | None" = None


class Term(NamedTuple):
    """One term of the objective: `weight * value` is added to the total.

    Attributes:
        name: Unique in the step, such as "flow" or "main/cosine" (alignment/criterion).
        value: The unweighted value, a 0-d tensor.
        weight: A number, or a 0-d tensor without gradient.
    """

    name: str
    value: Tensor
    weight: float | Tensor = 1.0

    def weighted_value(self) -> Tensor:
        """Return weight * value; a weight of exactly 1 costs nothing."""
        if isinstance(self.weight, float) and self.weight == 1.0:
            return self.value
        return self.weight * self.value


@dataclass(frozen=True)
class Losses:
    """Terms of the objective in the order in which they are summed, and diagnostics.

    Attributes:
        terms: The terms; only these are optimised.
        diagnostics: {name: 0-d tensor} for the log; never part of the objective.
    """

    terms: tuple[Term, ...] = ()
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def weighted(self) -> dict[str, Tensor]:
        """What each term adds to the objective, by its name. Raises ValueError for a name twice."""
        found: dict[str, Tensor] = {}
        for term in self.terms:
            if term.name in found:
                raise ValueError(f"two terms of the objective are called {term.name!r}.")
            found[term.name] = term.weighted_value()
        return found

    @cached_property
    def total(self) -> Tensor:
        """The weighted sum of all terms, which is minimised."""
        first, *others = self.weighted.values()
        return sum(others, first)

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.terms + other.terms, {**self.diagnostics, **other.diagnostics})

    def reaching(self, parameters: Iterable[Tensor]) -> "Losses":
        """Return the same losses, from which zeros flow back to these parameters, so that all
        processes of a job see a gradient of every parameter in every step."""
        zero = sum(0 * parameter.sum() for parameter in parameters)
        first, *others = self.terms
        return Losses((first._replace(value=first.value + zero), *others), self.diagnostics)

    def scalars(self) -> dict[str, Tensor]:
        """Everything that is logged, detached: "loss" (the total), "loss/<term>" (weighted),
        "<term>" (unweighted) and the diagnostics."""
        logged = {"loss": self.total.detach()}
        logged |= {f"loss/{name}": value.detach() for name, value in self.weighted.items()}
        logged |= {term.name: term.value.detach() for term in self.terms}
        return logged | {name: value.detach() for name, value in self.diagnostics.items()}


@dataclass(frozen=True)
class Geometry:
    """Every size that follows from the resolution, the tokenizer and the backbone.

    Built once, after the tokenizer and the backbone, and passed to the constructors of all parts
    that come after them.

    Attributes:
        resolution: Side of the images in pixels.
        downsample: Pixels per latent.
        tokenizer_levels: Levels that the tokenizer's own encoder pass can yield.
        streams: Shape of one sample of every stream, {'image': (C, h, w), 'cls': (C,)}.
        out_channels: Channels that are predicted for the image; 2C with a learned variance.
        grid: Token grid (h, w).
        prefix: Number of prefix tokens P.
        width: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads of a block; None if the backbone does not say.
        num_classes: Number of classes; None if the backbone takes no class labels.
        text_dim: Width of the text tokens; None if the backbone takes no text.
        pooled_dim: Width of the pooled text; None if the backbone takes none.
    """

    resolution: int
    downsample: int
    tokenizer_levels: Mapping[str, LevelSpec]
    streams: Mapping[str, tuple[int, ...]]
    out_channels: int
    grid: tuple[int, int]
    prefix: int
    width: int
    depth: int
    num_heads: int | None = None
    num_classes: int | None = None
    text_dim: int | None = None
    pooled_dim: int | None = None

    @property
    def latent_channels(self) -> int:
        """Channels C of the image's latent."""
        return self.streams["image"][0]

    @property
    def patch_size(self) -> int:
        """Side of the square of latents that makes one token."""
        return self.streams["image"][-1] // self.grid[1]

    @property
    def token_stride(self) -> int:
        """Pixels per token."""
        return self.downsample * self.patch_size
