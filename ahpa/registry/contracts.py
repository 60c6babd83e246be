"""The contracts between the parts: what crosses from one to another, and the base classes that say so.

Shapes: B batch (views included), C channels, N = h*w tokens, P prefix tokens, D width, L levels, G groups.
Conventions, stated here once: t = 1 is noise and t = 0 is data; a tap k is the output of the k-th block, counted from 1;
images are uint8 [B, 3, H, W] in a batch and float32 in [0, 1] in `Step.images`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Streams = dict[str, Tensor]  # what diffuses: {'image': [B, C, h, w]}
Features = dict[str, Tensor]  # level name -> [B, C, h, w] or [B, C], shallow -> deep


class TextCond(NamedTuple):
    """A text condition: the encoder's `tokens` [B, T, W], and `pooled` [B, P] where the backbone takes one."""

    tokens: Tensor
    pooled: Tensor | None = None


class LevelSpec(NamedTuple):
    """One level of a prior, known without running it. `stride` is pixels per feature (0 for a vector [B, C])."""

    channels: int
    stride: int


class Tokens(NamedTuple):
    """A block's output: `tokens` [B, P+N, D], of which the first `prefix` = P are not of the grid (h, w)."""

    tokens: Tensor
    prefix: int
    grid: tuple[int, int]


class Denoised(NamedTuple):
    """What a backbone returns: its prediction for each stream, and the tapped blocks' outputs by block number."""

    pred: Streams
    taps: dict[int, Tokens]


class Noisy(NamedTuple):
    """A noised batch: `x` at time `t` [B] in [0, 1], from `data` and `noise`; `target` is what to predict (v, or eps on a
    discrete path). With several `views` of each image, B counts them all: the whole batch once, then once more ..."""

    x: Streams
    t: Tensor
    target: Streams
    data: Streams
    noise: Streams
    views: int = 1


class Encoded(NamedTuple):
    """One pass of an autoencoder's encoder: the posterior's `mean` and `std` [B, C, h, w] in the diffusion's scale
    (None where only taps were asked for), and the levels that were asked for."""

    mean: Tensor | None
    std: Tensor | None
    taps: Features

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the posterior [B, C, h, w]."""
        mean, std = self.mean, self.std
        assert mean is not None and std is not None, "this pass was asked for taps only"
        return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


@dataclass
class Step:
    """One training step as it grows from left to right; every part reads what came before it.

        images [B, 3, H, W] float in [0, 1] (None when latents are given), label [B] long, `generator` the only source of
        randomness, `diagnose` whether this step's diagnostics will be shown, `progress` the share of the run in [0, 1];
    `flow` and `ema` are the model's flow and averaged backbone, for targets that noise the data anew or have a teacher.
    """

    batch: Mapping[str, Any]
    images: Tensor | None = None
    generator: torch.Generator | None = None
    diagnose: bool = False
    iteration: int = 0
    progress: float = 0.0
    flow: Any = None
    ema: Any = None
    encoded: Encoded | None = None
    noisy: Noisy | None = None
    cond: Any = None
    out: Denoised | None = None
    features: dict[str, Features] = field(default_factory=dict)  # prior name -> its levels


class HoldsFrozen:
    """Mixin for an nn.Module that uses a frozen network: it moves with `.to()`, and is in no parameter list, state
    dict or EMA. Register with `self.hold(name=network)`; read as `self.held['name']`."""

    def hold(self, **networks: nn.Module) -> None:
        held = self.__dict__.setdefault("held", {})
        for name, network in networks.items():
            held[name] = network.eval().requires_grad_(False)

    def _apply(self, fn, recurse=True):
        for network in self.__dict__.get("held", {}).values():
            network._apply(fn)
        return super()._apply(fn, recurse)


class Prior(HoldsFrozen, nn.Module):
    """Where a target comes from: named levels of features of a batch, frozen, never in a checkpoint or an EMA.

    Order of calls: `bind` (once), `spec`, `request` (once, the levels that the routers use), then `forward` per step.
    """

    def bind(self, *, tokenizer: "Autoencoder | None", backbone: "Backbone | None") -> None:
        """Told of the model's own parts; a prior that does not need them leaves this as it is."""

    def spec(self, backbone: "Backbone | None") -> dict[str, LevelSpec]:
        """Level name -> LevelSpec, ordered shallow -> deep, without running anything."""
        raise TypeError(f"{type(self).__name__} must define spec(backbone)")

    def request(self, levels: Sequence[str]) -> None:
        """Only these levels will be read; a prior may skip the work for the others."""

    def probe(self, backbone: "Backbone") -> Callable[[], Any] | None:
        """A call that runs its network for one image on the meta device, so that its cost can be counted without weights;
        None where it adds no network to the step."""
        return None

    def forward(self, step: Step) -> Features:
        """-> at least the requested levels, ordered shallow -> deep, without gradient."""
        raise TypeError(f"{type(self).__name__} must define forward(step)")


class Autoencoder(HoldsFrozen, nn.Module):
    """The latent tokenizer: images [B, 3, H, W] in [0, 1] <-> latents [B, C, H/s, W/s] of about unit scale.

    Attributes known without loading weights: `latent_channels` C, `downsample` s, `levels` {name: LevelSpec}.
    """

    latent_channels: int
    downsample: int
    levels: dict[str, LevelSpec]

    def load(self) -> None:
        """Reads the weights if that has not happened; UserError with where it looked when they are not there."""

    def encode(self, images: Tensor, taps: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(self, latent: Tensor) -> Tensor:
        """-> images [B, 3, H, W] in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define decode")


class TextEncoder(HoldsFrozen, nn.Module):
    """A frozen encoder of prompts. Attributes known without loading weights: `length` T, `width` W, `pooled_dim` P."""

    length: int
    width: int
    pooled_dim: int

    def load(self) -> None:
        """Reads the weights if that has not happened; UserError with what to do when they are not there."""

    def forward(self, prompts: Sequence[str]) -> TextCond:
        """-> tokens [B, T, W] and pooled [B, P], float32 and without gradient."""
        raise TypeError(f"{type(self).__name__} must define forward(prompts)")


class Conditioner(HoldsFrozen, nn.Module):
    """What a backbone is conditioned on. Built as `Conditioner(*, backbone, **own)`, of which it may read the sizes.
    `takes` names what samples are asked for by: 'classes' (numbers) or 'prompts' (strings)."""

    takes: str

    def load(self) -> None:
        """Reads a frozen network's weights now; a conditioner without one leaves this as it is."""

    def forward(self, step: Step) -> Any:
        """step.batch -> the condition of the training step; what it drops is drawn from `step.generator`."""
        raise TypeError(f"{type(self).__name__} must define forward(step)")

    def null(self, count: int, device) -> Any:
        """The null condition for `count` samples."""
        raise TypeError(f"{type(self).__name__} must define null(count, device)")

    def all(self) -> list:
        """The conditions that are shown when none is asked for."""
        raise TypeError(f"{type(self).__name__} must define all()")

    def encode(self, wanted: Sequence, device) -> Any:
        """The conditions of samples; UserError for one that there is not."""
        raise TypeError(f"{type(self).__name__} must define encode(wanted, device)")

    def example(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """What a batch of `count` synthetic samples holds for it."""
        raise TypeError(f"{type(self).__name__} must define example(count, generator)")


class Backbone(nn.Module):
    """A diffusion transformer. Attributes: `depth`, `hidden_size` D, `grid` (h, w), `prefix` P (0 if none), `streams`
    {stream: shape of one sample}, what sampling starts from. `out_channels` of the image's prediction may exceed its C:
    what follows the first C is a learned variance's."""

    depth: int
    hidden_size: int
    grid: tuple[int, int]
    prefix: int = 0
    streams: dict[str, tuple[int, ...]]

    def forward(self, x: Streams, t: Tensor, cond: Any, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """t [B] in [0, 1]. The output of block k is in `taps[k]` for each k asked for (1-based). With `stop`, no block
        after that number is computed and `pred` is empty: what a teacher of fewer blocks costs."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def blank_cond(self, count: int, device) -> Any:
        """Any valid condition of `count` samples, for counting costs and trying a backbone out: here class 0."""
        return torch.zeros(count, dtype=torch.long, device=device)


class Router(nn.Module):
    """Weighs the levels of a prior into one target. Built as
    `Router(*, spec, grid, content_dim, groups, prefix=(), **own)`; `out_dim` is the target's width, `groups` {group:
    level names}. The routers of ahpa inherit `mix` from `ahpa.routers.base.GroupedRouter` and override `weights`."""

    out_dim: int
    used_levels: tuple[str, ...]
    prefix: tuple[str, ...] = ()  # the vector levels that are the target's first tokens

    def weights(self, t: Tensor, content: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """t [B], content [B, N, D] -> ({group: [B, L]}, rows that sum to 1; inter [B, G])."""
        raise TypeError(f"{type(self).__name__} must define weights")

    def membership(self) -> dict[str, Tensor]:
        """{group: [L], how far each of its levels belongs to it, 0 to 1} where that is learned; empty where it is fixed."""
        return {}

    def mix(self, features: Features, intra: dict[str, Tensor], inter: Tensor) -> Tensor:
        """The target [B, P+N, out_dim] for given weights, as `weights` returns them."""
        raise TypeError(f"{type(self).__name__} must define mix")

    def forward(self, features: Features, t: Tensor, content: Tensor | None = None) -> Tensor:
        """-> the target [B, P+N, out_dim]."""
        return self.mix(features, *self.weights(t, content))


class Projector(nn.Module):
    """Built as `Projector(*, dim, out_dim, **own)`: maps Tokens [B, P+N, dim] to [B, P+N, out_dim]."""

    def forward(self, tokens: Tokens) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward")


class PairLoss(nn.Module):
    """Built as `PairLoss(*, dim, **own)`: compares pred and target, both [B, N, C], in float32 -> a scalar, or a dict
    {name: scalar}. `unweighted` names items that are the loss's own objective (a critic's), which no weight scales;
    `optimizer_options`, if set, makes its parameters a group of their own (lr, betas ...), clipped by itself."""

    unweighted: tuple[str, ...] = ()
    optimizer_options: dict[str, Any] | None = None

    def forward(self, pred: Tensor, target: Tensor) -> Tensor | dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward")
