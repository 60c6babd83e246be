"""`BottleneckProjector`: a head with few parameters."""

from torch import Tensor, nn

from ahpa.registry import PROJECTORS
from ahpa.registry.contracts import Projector, Tokens
from ahpa.registry.validation import positive_int


@PROJECTORS.register_module()
class BottleneckProjector(Projector):
    """z = A x, y = B gelu(z) + C z + b, with z of a low rank r: two layers and a linear skip.

    It has r (dim + 2 out_dim) + out_dim parameters, and maps prefix tokens like all others.

    Args:
        dim: Width of the tokens; passed by ahpa.
        out_dim: Width of the target; passed by ahpa.
        rank: Width r of the bottleneck.
    """

    def __init__(self, *, dim: int, out_dim: int, rank: int = 64) -> None:
        super().__init__()
        self.rank = positive_int("rank", rank)
        self.down = nn.Linear(dim, rank, bias=False)
        self.act = nn.GELU()
        self.up = nn.Linear(rank, out_dim)
        self.skip = nn.Linear(rank, out_dim, bias=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens [B, P+N, dim] to [B, P+N, out_dim]."""
        z = self.down(tokens.tokens)
        return self.up(self.act(z)) + self.skip(z)
