"""The learned routers of AHPA: an MLP of t (section 5.1), a lookup table, attention over prototypes, and an MLP that
also sees the content (Table D.17). The paper gives neither their start nor, for the latter three, their sizes; layers
start as torch starts a linear layer, `zero_init=True` starts from uniform weights instead.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..registry import ROUTERS, TIME_ENCODINGS, build
from .base import LearnedRouter, check_choice, check_count


def build_encoding(encoding: Mapping | nn.Module | None) -> nn.Module:
    """The time encoding of a config; the paper's, a linear one of 128 dimensions, where none is given."""
    return build(TIME_ENCODINGS, encoding or {"type": "LinearEncoding", "dim": 128}, where="encoding")


def make_mlp(dim: int, hidden_dim: int, out_dim: int, depth: int, *, zero_init: bool) -> nn.Sequential:
    """`depth` linear layers dim -> hidden_dim -> .. -> out_dim with SiLU between them [SiLU inferred]."""
    check_count("hidden_dim", hidden_dim)
    widths = [dim] + [hidden_dim] * (check_count("depth", depth) - 1) + [out_dim]
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.SiLU()]
    if zero_init:
        nn.init.zeros_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


@ROUTERS.register_module()
class MLPRouter(LearnedRouter):
    """The paper's router: an MLP of the encoded time, 128 -> 256 -> 256 -> 256 -> 10 by default (AHPA section 5.1).

    depth: its linear layers, the encoding's not counted (3, 4, 8 in Table D.17: .102, .167, .431 M parameters).
    """

    def __init__(self, *, encoding=None, hidden_dim: int = 256, depth: int = 4, zero_init: bool = False, **options):
        super().__init__(**options)
        self.encoding = build_encoding(encoding)
        self.mlp = make_mlp(self.encoding.dim, hidden_dim, self.outputs, depth, zero_init=zero_init)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        return self.mlp(self.encoding(t))


@ROUTERS.register_module()
class LUTRouter(LearnedRouter):
    """A lookup table: one row of logits for each of `bins` equal intervals of t (AHPA Table D.17; starts uniform).

    The row is min(floor(t bins), bins - 1), so t = 0.899 and 0.901 read different rows of 10. [10 inferred]
    """

    def __init__(self, *, bins: int = 10, **options):
        super().__init__(**options)
        self.bins = check_count("bins", bins)
        self.alpha_table = nn.Parameter(torch.zeros(bins, self.outputs - len(self.groups)))  # M_alpha
        self.beta_table = nn.Parameter(torch.zeros(bins, len(self.groups)))  # M_beta

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        row = (t * self.bins).floor().long().clamp(0, self.bins - 1)
        return torch.cat([self.alpha_table[row], self.beta_table[row]], dim=-1)


@ROUTERS.register_module()
class AttentionRouter(LearnedRouter):
    """Attention of the encoded time over learned prototypes: logits = softmax(q K^T / sqrt(d)) V (AHPA Table D.17).

    q = W_q e(t) [d], prototypes with keys K [K, d] and values V [K, outputs]. The paper gives no sizes: K = 8, d = 64;
    keys start as N(0, 1), values as the weights of a linear layer with K inputs.
    """

    def __init__(self, *, prototypes: int = 8, key_dim: int = 64, encoding=None, zero_init: bool = False, **options):
        super().__init__(**options)
        check_count("prototypes", prototypes)
        check_count("key_dim", key_dim)
        self.encoding = build_encoding(encoding)
        self.query = nn.Linear(self.encoding.dim, key_dim, bias=False)
        self.keys = nn.Parameter(torch.randn(prototypes, key_dim))
        bound = 0.0 if zero_init else prototypes**-0.5
        self.values = nn.Parameter(torch.empty(prototypes, self.outputs).uniform_(-bound, bound))

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        query = self.query(self.encoding(t))  # [B, d]
        attention = (query @ self.keys.T / query.shape[-1] ** 0.5).softmax(-1)  # [B, K]
        return attention @ self.values


@ROUTERS.register_module()
class ContentRouter(LearnedRouter):
    """The paper's router with the content beside the time: GAP(tokens) -> Linear, joined with e(t) (AHPA Table D.17).

    combine: 'concat' (the MLP's input doubles) or 'add'. detach_content keeps the router's gradient out of the
    backbone. The buffer `mean_content` [D] follows the pooled content in training (running mean, momentum 0.01, the
    first batch as it is; batches that are not finite are left out): `weights(t)` without content shows the policy for
    it. It describes this process' share of the batch and trains nothing.
    """

    momentum = 0.01

    def __init__(
        self,
        *,
        encoding=None,
        hidden_dim: int = 256,
        depth: int = 4,
        combine: str = "concat",
        detach_content: bool = False,
        zero_init: bool = False,
        **options,
    ):
        super().__init__(**options)
        self.combine, self.detach_content = check_choice("combine", combine, ("concat", "add")), detach_content
        self.encoding = build_encoding(encoding)
        dim = self.encoding.dim
        self.embed = nn.Linear(self.content_dim, dim)
        width = 2 * dim if combine == "concat" else dim
        self.mlp = make_mlp(width, hidden_dim, self.outputs, depth, zero_init=zero_init)
        self.register_buffer("mean_content", torch.zeros(self.content_dim))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    def pool(self, content: Tensor) -> Tensor:
        """GAP: [B, N, D] -> [B, D] in float32; follows its mean in training."""
        if content.ndim != 3 or content.shape[-1] != self.content_dim:
            raise ValueError(f"content must be [B, N, {self.content_dim}], got {list(content.shape)}.")
        pooled = (content.detach() if self.detach_content else content).mean(1, dtype=torch.float32)
        if self.training:
            self._follow(pooled.detach().mean(0))
        return pooled

    @torch.no_grad()
    def _follow(self, mean_D: Tensor) -> None:
        finite = mean_D.isfinite().all()  # stays on the device: no host sync
        rate = torch.where(self.batches_seen == 0, 1.0, self.momentum) * finite
        self.mean_content.lerp_(torch.where(finite, mean_D, self.mean_content), rate)
        self.batches_seen += finite

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        pooled = self.mean_content.expand(len(t), -1) if content is None else self.pool(content)
        time, seen = self.encoding(t), self.embed(pooled)
        return self.mlp(torch.cat([time, seen], dim=-1) if self.combine == "concat" else time + seen)
