"""Token routings: which tokens skip a stretch of blocks in training (TREAD, arXiv:2501.04765)."""

import torch

from ..registry import TOKEN_ROUTINGS, ConfigError
from ..registry.contracts import Geometry, Noised, TokenRoute, TokenRouting
from ..registry.validation import block_number, probability


@TOKEN_ROUTINGS.register_module()
class RandomRouting(TokenRouting):
    """A random part of each image's grid tokens stays in a stretch of blocks; the others skip it.

    A token that skips the blocks comes back unchanged after the last of them, so that the loss is
    over all tokens. An alignment of a block inside the stretch compares the kept tokens alone, with
    their own part of the target (MaskAlign, arXiv:2606.08788).

    One uniform number per token is drawn; the round(kept N) tokens with the smallest stay.

    Args:
        geometry: Sizes of the model.
        first_block: First block of the stretch, from 1.
        last_block: Last block of the stretch; must be before the backbone's last block.
        kept: Share of the grid tokens that stay in the blocks, in (0, 1].

    Raises:
        ConfigError: If the blocks are not in this order before the last block of the backbone, or
            no token would stay.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        first_block: int = 2,
        last_block: int = 8,
        kept: float = 0.5,
    ) -> None:
        super().__init__(geometry=geometry)
        self.first_block = block_number("first_block", first_block, geometry.depth)
        self.last_block = block_number("last_block", last_block, geometry.depth)
        if not first_block <= last_block < geometry.depth:
            raise ConfigError(
                f"last_block: must be at least first_block = {first_block} and before the "
                f"backbone's last block {geometry.depth}, got {last_block}."
            )
        tokens = geometry.grid[0] * geometry.grid[1]
        self.count = round(probability("kept", kept) * tokens)
        if not self.count:
            raise ConfigError(
                f"kept: must keep at least one of {tokens} tokens, {1 / tokens:.4g} of them; "
                f"got {kept!r}."
            )

    def draw(self, noised: Noised, rng: torch.Generator | None) -> TokenRoute:
        """Draw the kept tokens of every image."""
        tokens = self.geometry.grid[0] * self.geometry.grid[1]
        t = noised.t
        uniform = torch.rand(len(t), tokens, generator=rng, device=t.device)
        kept = uniform.argsort(1)[:, : self.count].sort(1).values
        return TokenRoute(kept, self.first_block, self.last_block)
