"""How a plan of tokens is followed through the blocks: tokens leave for a route and come back, and
attention stays within groups."""

from torch import Tensor

from ..registry.numerics import gather_tokens, token_index
from ..registry.values import TokenPlan


class Lanes:
    """The tokens of one forward pass on their way through the blocks of a `TokenPlan`.

    Every block is entered by `enter` and left by `leave`; without a plan both return their
    argument.

    Args:
        plan: The plan.
        prefix: Number of prefix tokens P, which are in every block.
    """

    def __init__(self, plan: TokenPlan, prefix: int) -> None:
        self.route = plan.route
        self.prefix = prefix
        self.waiting: Tensor | None = None
        self.whole_mask: Tensor | None = None
        self.route_mask: Tensor | None = None
        if plan.groups is not None:
            self.whole_mask = same_group(plan.groups)
            if plan.route is not None:
                self.route_mask = same_group(plan.groups.gather(1, plan.route.kept))

    def enter(self, block: int, h: Tensor) -> Tensor:
        """Return the tokens that are in a block, [B, P+N, D] or [B, P+K, D]."""
        if self.route is None or block != self.route.first:
            return h
        self.waiting = h
        return gather_tokens(h, self.route.kept, self.prefix)

    def leave(self, block: int, h: Tensor) -> Tensor:
        """Return all tokens [B, P+N, D] after the last block of the route: those that were not in
        its blocks are what they were before."""
        if self.route is None or block != self.route.last:
            return h
        assert self.waiting is not None, "the route was left before it was entered"
        index = token_index(self.route.kept, self.prefix, h.shape[-1])
        return self.waiting.to(h.dtype).scatter(1, index, h)

    def cond(self, block: int, c: Tensor) -> Tensor:
        """Return the condition of the tokens in a block; one per sample [B, D] is unchanged."""
        if self.route is None or c.ndim == 2 or not self.route.skips(block):
            return c
        return gather_tokens(c, self.route.kept, self.prefix)

    def mask(self, block: int) -> Tensor | None:
        """Return which tokens of a block attend to which, bool [B, 1, N, N]; None for all."""
        if self.route is not None and self.route.skips(block):
            return self.route_mask
        return self.whole_mask


def same_group(groups: Tensor) -> Tensor:
    """Return where two tokens are of one group: [B, N] -> bool [B, 1, N, N]."""
    return (groups[:, :, None] == groups[:, None, :])[:, None]
