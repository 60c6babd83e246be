"""A flow with two times in one image, one for each token: Self-Flow's dual-timestep noising."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Geometry, Path, Timesteps
from .flows import ContinuousFlow

MASKS = ("exact", "bernoulli")


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
        rows, columns = geometry.grid
        for name, shape in geometry.streams.items():
            if len(shape) != 3:
                raise ConfigError(
                    f"TokenTimeFlow: the stream {name!r} is a vector without grid tokens; "
                    "only streams [C, h, w] can have a time per token."
                )
            if shape[1] % rows or shape[2] % columns:
                raise ConfigError(
                    f"TokenTimeFlow: the stream {name!r} of {shape[1]} x {shape[2]} does not "
                    f"divide into the token grid of {rows} x {columns}."
                )

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

    def spread(self, t: Tensor, x: Tensor) -> Tensor:
        """Spread times [B, N] over the grid's pixels, [B, 1, h, w]; other shapes are unchanged."""
        if t.ndim != 2:
            return t
        rows, columns = self.geometry.grid
        grid = t.unflatten(1, (1, rows, columns))
        tall = grid.repeat_interleave(x.shape[2] // rows, 2)
        return tall.repeat_interleave(x.shape[3] // columns, 3)
