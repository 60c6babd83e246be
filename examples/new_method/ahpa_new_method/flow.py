"""`StratifiedFlow`: noising at times that cover [0, 1] evenly in each batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ahpa.registry import FLOWS, PATHS, ConfigError, build
from ahpa.registry.contracts import Flow, Geometry, Noised, Path, Streams
from ahpa.registry.validation import boolean, positive_int


@FLOWS.register_module()
class StratifiedFlow(Flow):
    """Stratified times: [0, 1] is cut into B equal parts, and each sample draws from its own.

    Which sample gets which part is random, so each time is uniform by itself; together they vary
    less than independent ones, and so does the loss. With `antithetic`, the times of the second
    half of the batch are 1 - t of the first half's (which is stratified by itself).

    Args:
        geometry: The model's sizes; passed by ahpa.
        path: A path with a velocity, a config or an object; LinearPath by default.
        views: How often each image of a batch is noised; all views share the strata.
        antithetic: Whether times come in pairs t, 1 - t.

    Raises:
        ConfigError: If the path has no velocity.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Mapping[str, Any] | Path | None = None,
        views: int = 1,
        antithetic: bool = False,
    ) -> None:
        super().__init__(geometry=geometry)
        cfg = {"type": "LinearPath"} if path is None else path
        built: Path = build(PATHS, cfg, where="model.flow.path")
        if built.predicts != "velocity":
            raise ConfigError(f"path: {type(built).__name__} has no velocity.")
        self.path = built
        self.views = positive_int("views", views)
        self.antithetic = boolean("antithetic", antithetic)

    def times(self, count: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw times [count] in [0, 1], float32."""
        strata = (count + 1) // 2 if self.antithetic else count
        order = torch.randperm(strata, generator=rng, device=device)
        inside = torch.rand(strata, generator=rng, device=device)
        t = (order + inside) / strata
        if self.antithetic:
            t = torch.cat([t, 1 - t[: count - strata]])
        return t.clamp(0, 1)

    def sample(self, streams: Streams, rng: torch.Generator | None) -> Noised:
        """Noise the clean streams {name: [B, ...]}: the times first, then each stream's noise."""
        data = {name: torch.cat([x0.float()] * self.views) for name, x0 in streams.items()}
        first = next(iter(data.values()))
        t = self.times(len(first), rng, first.device)
        x: Streams = {}
        target: Streams = {}
        noise: Streams = {}
        for name, x0 in data.items():
            noise[name] = torch.randn(x0.shape, generator=rng, device=x0.device)
            x[name], target[name] = self.path.mix(x0, noise[name], t)
        return Noised(x, t, target, data, noise, path=self.path, views=self.views)
