"""Projectors: trainable heads that map tapped tokens [B, P+N, dim] to the target's width [B, P+N, out_dim].

They serve training only and are not part of the backbone, so that its checkpoint does not depend on the method. The
paper names the heads of Table D.13 but not their hidden widths; layers start as torch starts them.
"""

import math

from torch import Tensor, nn

from ..registry import PROJECTORS
from ..registry.contracts import Projector, Tokens


@PROJECTORS.register_module()
class LinearProjector(Projector):
    """One linear layer per token (AHPA Table D.13 f)."""

    def __init__(self, *, dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.linear(tokens.tokens)


@PROJECTORS.register_module()
class MLPProjector(Projector):
    """`depth` linear layers per token with SiLU between them (REPA: three, hidden 2048).

    hidden_dims: a width for each inner layer, in place of depth and hidden_dim (SRA 2's inferred widths differ). gain: None
    for torch's own start; a number for DUPA's: the first layer Kaiming, the others Xavier with this gain.
    """

    def __init__(self, *, dim: int, out_dim: int, depth: int = 3, hidden_dim: int = 2048, hidden_dims=None,
                 gain: float | None = None):  # fmt: skip
        super().__init__()
        if depth < 1 or hidden_dim < 1:
            raise ValueError(f"depth and hidden_dim must be at least 1, got {depth} and {hidden_dim}.")
        inner = [hidden_dim] * (depth - 1) if hidden_dims is None else list(hidden_dims)
        if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in inner):
            raise ValueError(f"hidden_dims: whole numbers above 0 are expected, got {hidden_dims!r}.")
        widths = [dim, *inner, out_dim]
        layers = []
        for i in range(len(widths) - 1):
            layers += [nn.Linear(widths[i], widths[i + 1]), nn.SiLU()]
        self.mlp = nn.Sequential(*layers[:-1])
        if gain is not None:
            self._start(gain)

    def _start(self, gain: float) -> None:
        if not gain > 0:
            raise ValueError(f"gain: must be above 0, got {gain!r}.")
        first, *others = (layer for layer in self.mlp if isinstance(layer, nn.Linear))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        for layer in others:
            nn.init.xavier_uniform_(layer.weight, gain=gain)
        for layer in (first, *others):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.mlp(tokens.tokens)


@PROJECTORS.register_module()
class ConvProjector(Projector):
    """Convolutions over the token grid: `layers` - 1 blocks of conv, GroupNorm, SiLU, and a last conv (AHPA
    Table D.13: 3 x 3, one layer by default).

    kernel: odd. hidden_dim: width of the blocks, `out_dim` by default. norm_groups: by default the largest divisor of
    the width that divides 32 too. Tokens that are not of the grid cannot be projected: ValueError.
    """

    def __init__(self, *, dim: int, out_dim: int, layers: int = 1, kernel: int = 3, hidden_dim: int | None = None,
                 norm_groups: int | None = None):  # fmt: skip
        super().__init__()
        hidden = out_dim if hidden_dim is None else hidden_dim
        groups = math.gcd(32, hidden) if norm_groups is None else norm_groups
        if hidden < 1 or groups < 1:
            raise ValueError(f"hidden_dim and norm_groups must be at least 1, got {hidden} and {groups}.")
        if layers < 1:
            raise ValueError(f"layers: must be at least 1, got {layers}.")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd (1 or 3), got {kernel}.")
        if hidden % groups:
            near = [n for n in range(1, hidden + 1) if hidden % n == 0 and n <= 2 * groups]
            raise ValueError(f"norm_groups: {groups} does not divide the width {hidden}; these do: {near}.")
        blocks = []
        for i in range(layers - 1):
            width = dim if i == 0 else hidden
            blocks += [nn.Conv2d(width, hidden, kernel, padding=kernel // 2), nn.GroupNorm(groups, hidden), nn.SiLU()]
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Conv2d(hidden if blocks else dim, out_dim, kernel, padding=kernel // 2)

    def forward(self, tokens: Tokens) -> Tensor:
        if tokens.prefix:
            raise ValueError(f"ConvProjector works on the token grid; {tokens.prefix} prefix tokens are not of it. Use "
                             "an MLPProjector.")  # fmt: skip
        x = tokens.tokens.transpose(1, 2).unflatten(2, tokens.grid)  # [B, D, h, w]
        return self.out(self.blocks(x)).flatten(2).transpose(1, 2)
