"""The learned routers of AHPA: an MLP of t (section 5.1), and a lookup table, attention over
prototypes and an MLP that also sees the content (Table D.17).

The paper gives neither their initialisation nor, for the latter three, their sizes. Layers keep
torch's initialisation; `zero_init=True` starts from uniform weights instead.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import ROUTERS, TIME_ENCODINGS, build
from ..registry.contracts import Geometry, LevelSpec, TimeEncoding
from ..registry.validation import choice, positive_int
from .base import LearnedRouter
from .grouping import Groups

Encoding = Mapping[str, Any] | TimeEncoding | None
DEFAULT_ENCODING = {"type": "LinearEncoding", "dim": 128}
COMBINATIONS = ("concat", "add")


def build_encoding(encoding: Encoding) -> TimeEncoding:
    """Build a time encoding from its config; the paper's if none is given (linear, width 128)."""
    return build(TIME_ENCODINGS, encoding or DEFAULT_ENCODING, where="encoding")


def make_mlp(
    dim: int, hidden_dim: int, out_dim: int, depth: int, *, zero_init: bool
) -> nn.Sequential:
    """Build `depth` linear layers with SiLU between them [SiLU inferred].

    Args:
        dim: Width of the input.
        hidden_dim: Width of the inner layers.
        out_dim: Width of the output.
        depth: Number of linear layers.
        zero_init: Whether to zero-initialise the last layer.
    """
    positive_int("hidden_dim", hidden_dim)
    positive_int("depth", depth)
    widths = [dim] + [hidden_dim] * (depth - 1) + [out_dim]
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.SiLU()]
    layers.pop()  # no activation after the last layer
    last = layers[-1]
    if zero_init and isinstance(last, nn.Linear):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


@ROUTERS.register_module()
class MLPRouter(LearnedRouter):
    """The paper's router: an MLP of the encoded time, 128 -> 256 -> 256 -> 256 -> 10 by default
    (AHPA, section 5.1).

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        beta: "softmax" or "sigmoid"; see `LearnedRouter`.
        encoding: Config of the time encoding; `LinearEncoding` of width 128 by default.
        hidden_dim: Width of the inner layers.
        depth: Linear layers, the encoding's own not counted (3, 4 and 8 in Table D.17, with .102,
            .167 and .431 M parameters).
        zero_init: Whether to start from uniform weights.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
        beta: str = "softmax",
        encoding: Encoding = None,
        hidden_dim: int = 256,
        depth: int = 4,
        zero_init: bool = False,
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
            beta=beta,
        )
        self.encoding = build_encoding(encoding)
        dim = self.encoding.dim
        self.mlp = make_mlp(dim, hidden_dim, self.outputs, depth, zero_init=zero_init)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the logits [B, outputs] = MLP(e(t))."""
        return self.mlp(self.encoding(t))


@ROUTERS.register_module()
class LUTRouter(LearnedRouter):
    """A lookup table: one row of logits for each of `bins` equal intervals of t (AHPA, Table D.17).

    The row is min(floor(t bins), bins - 1), so that with 10 bins t = 0.899 and t = 0.901 read
    different rows. It starts from uniform weights.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        beta: "softmax" or "sigmoid"; see `LearnedRouter`.
        bins: Number of intervals N. 10 uniform ones are AHPA's, from the paper's public review (the
            paper itself gives no N). 1 learns the same weights for every t: the review's control,
            `ahpa_sit-b_control-constant-weights`.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
        beta: str = "softmax",
        bins: int = 10,
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
            beta=beta,
        )
        self.bins = positive_int("bins", bins)
        count = len(self.groups)
        self.alpha_table = nn.Parameter(torch.zeros(bins, self.outputs - count))
        self.beta_table = nn.Parameter(torch.zeros(bins, count))

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the rows [B, outputs] of times [B]."""
        row = (t * self.bins).floor().long().clamp(0, self.bins - 1)
        return torch.cat([self.alpha_table[row], self.beta_table[row]], dim=-1)


@ROUTERS.register_module()
class AttentionRouter(LearnedRouter):
    """Attention of the encoded time over learned prototypes (AHPA, Table D.17).

    logits = softmax(q K^T / sqrt(d)) V, with the query q = W_q e(t) [d], keys K [prototypes, d]
    and values V [prototypes, outputs]. The paper gives no sizes and no initialisation: keys start
    as N(0, 1), values like the weights of a linear layer with `prototypes` inputs.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        beta: "softmax" or "sigmoid"; see `LearnedRouter`.
        prototypes: Number of prototypes.
        key_dim: Width d of queries and keys.
        encoding: Config of the time encoding; `LinearEncoding` of width 128 by default.
        zero_init: Whether to start from uniform weights.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
        beta: str = "softmax",
        prototypes: int = 8,
        key_dim: int = 64,
        encoding: Encoding = None,
        zero_init: bool = False,
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
            beta=beta,
        )
        positive_int("prototypes", prototypes)
        positive_int("key_dim", key_dim)
        self.encoding = build_encoding(encoding)
        self.query = nn.Linear(self.encoding.dim, key_dim, bias=False)
        self.keys = nn.Parameter(torch.randn(prototypes, key_dim))
        bound = 0.0 if zero_init else prototypes**-0.5
        values = torch.empty(prototypes, self.outputs).uniform_(-bound, bound)
        self.values = nn.Parameter(values)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the logits [B, outputs]: the attended prototypes' values."""
        query = self.query(self.encoding(t))  # [B, d]
        scores = query @ self.keys.T / query.shape[-1] ** 0.5  # [B, prototypes]
        return scores.softmax(-1) @ self.values


@ROUTERS.register_module()
class ContentRouter(LearnedRouter):
    """The paper's router with the content beside the time: the mean over the grid tokens, through
    a linear layer, is joined with e(t) (AHPA, Table D.17).

    The buffer `mean_content` [D] is a running mean of the pooled content of this process (momentum
    0.01, initialised with the first batch; batches that are not finite are skipped). It is not
    trained; `weights(t, None)` uses it to show the policy without content.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: Which levels form which group; see `resolve_groups`.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels of one group may differ in channels.
        beta: "softmax" or "sigmoid"; see `LearnedRouter`.
        encoding: Config of the time encoding; `LinearEncoding` of width 128 by default.
        hidden_dim: Width of the inner layers.
        depth: Number of linear layers.
        combine: "concat" (doubles the MLP's input) or "add".
        detach_content: Whether to keep the router's gradient out of the backbone.
        zero_init: Whether to start from uniform weights.
    """

    momentum = 0.01
    mean_content: Tensor
    batches_seen: Tensor

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "4/4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = False,
        beta: str = "softmax",
        encoding: Encoding = None,
        hidden_dim: int = 256,
        depth: int = 4,
        combine: str = "concat",
        detach_content: bool = False,
        zero_init: bool = False,
    ) -> None:
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=groups,
            prefix=prefix,
            resize=resize,
            pad=pad,
            beta=beta,
        )
        self.combine = choice("combine", combine, COMBINATIONS)
        self.detach_content = detach_content
        self.encoding = build_encoding(encoding)
        dim = self.encoding.dim
        self.embed = nn.Linear(self.content_dim, dim)
        width = 2 * dim if combine == "concat" else dim
        self.mlp = make_mlp(width, hidden_dim, self.outputs, depth, zero_init=zero_init)
        self.register_buffer("mean_content", torch.zeros(self.content_dim))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    def pool(self, content: Tensor) -> Tensor:
        """Average the grid tokens [B, N, D] to [B, D], float32; updates `mean_content` in training.

        Raises:
            ValueError: If the content has another shape.
        """
        if content.ndim != 3 or content.shape[-1] != self.content_dim:
            shape = list(content.shape)
            raise ValueError(f"content must be [B, N, {self.content_dim}], got {shape}.")
        if self.detach_content:
            content = content.detach()
        pooled = content.mean(1, dtype=torch.float32)
        if self.training:
            self._follow(pooled.detach().mean(0))
        return pooled

    @torch.no_grad()
    def _follow(self, mean: Tensor) -> None:
        finite = mean.isfinite().all()  # stays on the device: no host sync
        rate = torch.where(self.batches_seen == 0, 1.0, self.momentum) * finite
        mean = torch.where(finite, mean, self.mean_content)
        self.mean_content.lerp_(mean, rate)
        self.batches_seen += finite

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the logits [B, outputs] = MLP of e(t) joined with the embedded content."""
        if content is None:
            pooled = self.mean_content.expand(len(t), -1)
        else:
            pooled = self.pool(content)
        time = self.encoding(t)
        seen = self.embed(pooled)
        joined = torch.cat([time, seen], dim=-1) if self.combine == "concat" else time + seen
        return self.mlp(joined)
