"""Flows with several times in one image: Self-Flow's dual-timestep noising, and groups of tokens
with a time each that attend only to themselves (SRA with DTS-AS)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Geometry, Path, Timesteps
from .flows import ContinuousFlow

MASKS = ("exact", "bernoulli")


def check_grid(flow: str, geometry: Geometry) -> None:
    """Check that every stream has a time for each grid token. Raises ConfigError."""
    rows, columns = geometry.grid
    for name, shape in geometry.streams.items():
        if len(shape) != 3:
            raise ConfigError(
                f"{flow}: the stream {name!r} is a vector without grid tokens; "
                "only streams [C, h, w] can have a time per token."
            )
        if shape[1] % rows or shape[2] % columns:
            raise ConfigError(
                f"{flow}: the stream {name!r} of {shape[1]} x {shape[2]} does not "
                f"divide into the token grid of {rows} x {columns}."
            )


@FLOWS.register_module()
class TokenTimeFlow(ContinuousFlow):
    """Two times per image, one of them for a random part of the tokens (Self-Flow,
    arXiv:2603.06507).

    t, s ~ p(t); tau_n = s for the tokens n of a random mask M and t for the others. Every latent
    pixel is mixed at the time of its token, and `Noised.t` is tau [B, N]. A teacher at the cleaner
    time of the two, min(t, s), finds it as `noised.t.amin(1)`. Sampling has one time for all
    tokens, as with any other flow.

    The times t [B] are drawn first, then s [B], then the mask, then the noise.

    Args:
        geometry: Sizes of the model; `grid` is the token grid of M.
        path: A path with a velocity, a config or an object; LinearPath by default.
        timesteps: p(t), a config or an object; UniformTimesteps by default.
        views: How often each image of a batch is noised.
        prediction: What the network predicts: "velocity", "data" or "noise".
        least_t: See ContinuousFlow.
        ratio: Share of the tokens in M, in [0, 1].
        mask: "exact" puts round(ratio N) tokens of every image into M, "bernoulli" each token on
            its own with probability `ratio`. The paper's text fits both; "exact" is our default.

    Raises:
        ConfigError: If a stream is a vector, which has no tokens of its own on the grid, or its
            height and width are not multiples of the grid's.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Mapping[str, Any] | Path | None = None,
        timesteps: Mapping[str, Any] | Timesteps | None = None,
        views: int = 1,
        prediction: str = "velocity",
        least_t: float = 0.05,
        ratio: float = 0.25,
        mask: str = "exact",
    ) -> None:
        super().__init__(
            geometry=geometry,
            path=path,
            timesteps=timesteps,
            views=views,
            prediction=prediction,
            least_t=least_t,
        )
        self.ratio = valid.probability("ratio", ratio)
        self.mask = valid.choice("mask", mask, MASKS)
        check_grid("TokenTimeFlow", geometry)

    def times(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw tau [count, N]: s on the tokens of a random mask, t on the others."""
        t = super().times(count, rng, device)
        s = super().times(count, rng, device)
        masked = self.draw_mask(count, rng, device)
        return torch.where(masked, s[:, None], t[:, None])

    def draw_mask(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw the masks M, bool [count, N]; each consumes one uniform number per token."""
        tokens = self.geometry.grid[0] * self.geometry.grid[1]
        uniform = torch.rand(count, tokens, generator=rng, device=device)
        if self.mask == "bernoulli":
            return uniform < self.ratio
        rank = uniform.argsort(1).argsort(1)
        return rank < round(self.ratio * tokens)


@FLOWS.register_module()
class TokenGroupFlow(ContinuousFlow):
    """Groups of tokens in one image, each with a time of its own (DTS), which attend only to
    themselves (AS; arXiv:2607.02508).

    The tokens of each image are divided at random into groups of given shares; every group g draws
    its own t_g ~ p(t), the noise is one for the whole image. `Noised.t` is t_g of each token
    [B, N], and `Noised.groups` its group. Sampling has one time and one group.

    The groups are drawn first (one uniform number per token), then the times [B, G], then the
    noise.

    Args:
        geometry: Sizes of the model; `grid` is the token grid.
        path: A path with a velocity, a config or an object; LinearPath by default.
        timesteps: p(t), a config or an object; UniformTimesteps by default.
        views: How often each image of a batch is noised.
        prediction: What the network predicts: "velocity", "data" or "noise".
        least_t: See ContinuousFlow.
        shares: Share of the tokens in each group; they must add up to 1.
        separate: Whether tokens attend only to tokens of their own group. False is dual-timestep
            noising alone.

    Raises:
        ConfigError: If the shares do not add up to 1, a group would be empty, or a stream has no
            tokens of its own on the grid.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Mapping[str, Any] | Path | None = None,
        timesteps: Mapping[str, Any] | Timesteps | None = None,
        views: int = 1,
        prediction: str = "velocity",
        least_t: float = 0.05,
        shares: Sequence[float] = (0.25, 0.75),
        separate: bool = True,
    ) -> None:
        super().__init__(
            geometry=geometry,
            path=path,
            timesteps=timesteps,
            views=views,
            prediction=prediction,
            least_t=least_t,
        )
        self.separate = valid.boolean("separate", separate)
        check_grid("TokenGroupFlow", geometry)
        self.sizes = group_sizes(shares, geometry.grid[0] * geometry.grid[1])

    def times_and_groups(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Draw the times [count, N] and the group ids [count, N] of all tokens."""
        groups = self.draw_groups(count, rng, device)
        drawn = self.timesteps.sample(count * len(self.sizes), rng, device)
        return drawn.unflatten(0, (count, -1)).gather(1, groups), groups

    def times(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw the times [count, N] of all tokens."""
        return self.times_and_groups(count, rng, device)[0]

    def draw_groups(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw group ids [count, N]: a random permutation of each image, cut into the groups."""
        parts = [torch.full((size,), group, device=device) for group, size in enumerate(self.sizes)]
        in_order = torch.cat(parts)
        uniform = torch.rand(count, len(in_order), generator=rng, device=device)
        return in_order[uniform.argsort(1)]


def group_sizes(shares: Sequence[float], tokens: int) -> tuple[int, ...]:
    """Return how many of `tokens` tokens are in each group, from the groups' shares.

    Raises:
        ConfigError: If the shares do not add up to 1, or a group would be empty.
    """
    if isinstance(shares, str) or not isinstance(shares, Sequence) or not shares:
        raise ConfigError(f"shares: must be a list of shares that add up to 1, got {shares!r}.")
    found = [valid.probability("shares", share) for share in shares]
    if abs(sum(found) - 1) > 1e-6:
        raise ConfigError(f"shares: must add up to 1, {list(shares)} give {sum(found):g}.")
    ends = [round(end * tokens) for end in accumulate(found)]
    sizes = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    if min(sizes) < 1:
        raise ConfigError(
            f"shares: {list(shares)} of {tokens} tokens leave a group without tokens ({sizes})."
        )
    return sizes
