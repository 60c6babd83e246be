"""Projectors: trained heads that map tapped tokens [B, P+N, dim] to the target's width.

They serve training only and do not belong to the backbone, so that its checkpoint does not depend
on the method. The paper names the heads of Table D.13 but not their hidden widths.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..registry import PROJECTORS, ConfigError
from ..registry.contracts import Geometry, Projector, Tokens
from ..registry.validation import choice, integer, positive, positive_int

INITS = ("torch", "xavier")


def meta_call(projector: nn.Module, geometry: Geometry, prefix: int) -> Callable[[], Tensor]:
    """Return a call of a copy of the projector on the meta device, for counting its cost.

    Args:
        projector: The head.
        geometry: Sizes of the model.
        prefix: Number of prefix tokens that the head is given.

    Returns:
        A call without arguments that projects the tokens of one image.
    """
    head = copy.deepcopy(projector).to("meta")
    count = prefix + geometry.grid[0] * geometry.grid[1]
    blank = torch.zeros(1, count, geometry.width, device="meta")
    tokens = Tokens(blank, prefix, geometry.grid)
    return lambda: head(tokens)


def initialise(head: nn.Module, init: str) -> None:
    """Set the initial weights of a head's linear layers and convolutions.

    Args:
        head: The head.
        init: "torch" leaves PyTorch's own initial weights. "xavier" draws them from Xavier's
            uniform distribution, a convolution as a linear layer of its patch, and sets biases to
            zero.

    Raises:
        ConfigError: If `init` is neither.
    """
    if choice("init", init, INITS) == "torch":
        return
    for layer in head.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight.data.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@PROJECTORS.register_module()
class IdentityProjector(Projector):
    """No head: the tokens themselves are compared with the target (LayerSync, arXiv:2510.12581).

    Args:
        dim: Width of the tokens.
        out_dim: Width of the target.

    Raises:
        ConfigError: If the two widths differ.
    """

    def __init__(self, *, dim: int, out_dim: int) -> None:
        super().__init__()
        if dim != out_dim:
            raise ConfigError(
                f"IdentityProjector: tokens of width {dim} cannot be compared with a target of "
                f"width {out_dim} without a head; use a LinearProjector."
            )

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the tokens [B, P+N, dim] unchanged."""
        return tokens.tokens


@PROJECTORS.register_module()
class LinearProjector(Projector):
    """One linear layer per token (AHPA, Table D.13 f).

    Args:
        dim: Width of the tokens.
        out_dim: Width of the target.
        init: Initial weights, "torch" or "xavier"; see `initialise`.
    """

    def __init__(self, *, dim: int, out_dim: int, init: str = "torch") -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim)
        initialise(self, init)

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens [B, P+N, dim] to [B, P+N, out_dim]."""
        return self.linear(tokens.tokens)


@PROJECTORS.register_module()
class MLPProjector(Projector):
    """`depth` linear layers per token with SiLU between them (REPA: three, hidden width 2048).

    Args:
        dim: Width of the tokens.
        out_dim: Width of the target.
        depth: Number of linear layers.
        hidden_dim: Width of all inner layers.
        hidden_dims: Width of each inner layer, instead of `depth` and `hidden_dim` (the inferred
            widths of SRA 2 differ).
        init: Initial weights, "torch" or "xavier"; see `initialise`. The official codes of REPA,
            REG and SRA start the head like the backbone's linear layers: Xavier.
        gain: A number instead of `init` for DUPA's start: the first layer Kaiming, the others
            Xavier with this gain, biases zero.

    Raises:
        ConfigError: If an option is not valid, or if both `gain` and `init` are given.
    """

    def __init__(
        self,
        *,
        dim: int,
        out_dim: int,
        depth: int = 3,
        hidden_dim: int = 2048,
        hidden_dims: Sequence[int] | None = None,
        init: str = "torch",
        gain: float | None = None,
    ) -> None:
        super().__init__()
        positive_int("depth", depth)
        positive_int("hidden_dim", hidden_dim)
        if hidden_dims is None:
            inner = [hidden_dim] * (depth - 1)
        else:
            inner = [positive_int("hidden_dims", width) for width in hidden_dims]
        widths = [dim, *inner, out_dim]
        layers: list[nn.Module] = []
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width, following), nn.SiLU()]
        layers.pop()  # no activation after the last layer
        self.mlp = nn.Sequential(*layers)
        initialise(self, init)
        if gain is not None:
            if init != "torch":
                raise ConfigError(
                    f"gain: is a start of its own and excludes init={init!r}; leave one out."
                )
            self._initialise_as_dupa(positive("gain", gain))

    def _initialise_as_dupa(self, gain: float) -> None:
        first, *others = (layer for layer in self.mlp if isinstance(layer, nn.Linear))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        for layer in others:
            nn.init.xavier_uniform_(layer.weight, gain=gain)
        for layer in (first, *others):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens [B, P+N, dim] to [B, P+N, out_dim]."""
        return self.mlp(tokens.tokens)


@PROJECTORS.register_module()
class ConvProjector(Projector):
    """Convolutions over the token grid: `layers` - 1 blocks of convolution, GroupNorm and SiLU, and
    a last convolution (AHPA, Table D.13: 3 x 3, one layer by default).

    Args:
        dim: Width of the tokens.
        out_dim: Width of the target.
        layers: Number of convolutions.
        kernel: Side of the kernels, odd.
        hidden_dim: Width of the blocks, `out_dim` by default.
        norm_groups: Groups of the GroupNorms; by default the largest divisor of the width that
            divides 32 too.
        init: Initial weights, "torch" (as in iREPA's code) or "xavier"; see `initialise`.
    """

    def __init__(
        self,
        *,
        dim: int,
        out_dim: int,
        layers: int = 1,
        kernel: int = 3,
        hidden_dim: int | None = None,
        norm_groups: int | None = None,
        init: str = "torch",
    ) -> None:
        super().__init__()
        positive_int("layers", layers)
        hidden = out_dim if hidden_dim is None else positive_int("hidden_dim", hidden_dim)
        groups = math.gcd(32, hidden)
        if norm_groups is not None:
            groups = _divisor("norm_groups", norm_groups, hidden)
        if integer("kernel", kernel, least=1) % 2 == 0:
            raise ConfigError(f"kernel: must be odd (1 or 3), got {kernel}.")
        blocks: list[nn.Module] = []
        width = dim
        for _ in range(layers - 1):
            blocks.append(nn.Conv2d(width, hidden, kernel, padding=kernel // 2))
            blocks += [nn.GroupNorm(groups, hidden), nn.SiLU()]
            width = hidden
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Conv2d(width, out_dim, kernel, padding=kernel // 2)
        initialise(self, init)

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens [B, N, dim] to [B, N, out_dim].

        Raises:
            ValueError: If there are prefix tokens, which do not lie on the grid.
        """
        if tokens.prefix:
            raise ValueError(
                f"ConvProjector works on the token grid, but there are {tokens.prefix} prefix "
                "tokens outside it; use an MLPProjector."
            )
        x = tokens.as_map()  # [B, D, h, w]
        return self.out(self.blocks(x)).flatten(2).transpose(1, 2)


def _divisor(name: str, value: int, width: int) -> int:
    if width % positive_int(name, value):
        near = [n for n in range(1, width + 1) if width % n == 0 and n <= 2 * value]
        raise ConfigError(f"{name}: {value} does not divide the width {width}; valid: {near}.")
    return value
