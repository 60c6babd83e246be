"""MIND, the Monge Inception distance (arXiv:2605.06797): a sliced Wasserstein distance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from ..registry.validation import integer, positive_int
from .extractors import figure_name, need_of

BLOCK = 64  # directions that are projected on at once
FACTOR = 3  # of the paper's figure, beside the dimension


def unit_directions(dim: int, count: int, seed: int) -> Tensor:
    """Draw directions [dim, count], float64, of length 1, by torch's generator of the CPU."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=0)


def squared_wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared Wasserstein distance of empirical distributions on a line, [K].

    Of sets of equal size it is the mean of (sort x - sort y)^2; of others the integral of the
    squared difference of their quantile functions, which are constant between the breakpoints i/n
    and j/m.

    Args:
        first: Values [n, K].
        second: Values [m, K].
    """
    n, m = len(first), len(second)
    ours, theirs = first.sort(0)[0], second.sort(0)[0]
    if n == m:
        return (ours - theirs).square().mean(0)
    # Breakpoints as integers in units of 1 / (n m), so that equal ones are found exactly.
    device = first.device
    steps = [torch.arange(1, n + 1, device=device) * m, torch.arange(1, m + 1, device=device) * n]
    ends = torch.cat(steps).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    widths = (ends - starts).to(first.dtype) / (n * m)
    difference = ours[starts // m] - theirs[starts // n]
    return (widths[:, None] * difference.square()).sum(0)


@METRICS.register_module(name="mind")
class MIND(Metric):
    """The Monge Inception distance: 3 D times the mean, over 1,000 random unit directions, of the
    squared Wasserstein distance of the projected features. 5,000 samples stand for FID's 50,000.

    The paper's sets are of equal size; others are compared by their quantile functions.

    Args:
        extractor: Name or config of the feature extractor.
        output: Its output; None for its first one, Inception's pool.
        directions: Number of directions.
        seed: Seed of the directions.

    Raises:
        ConfigError: If there is no such extractor or output, or a number is out of its range.
    """

    def __init__(
        self,
        *,
        extractor: str | Mapping[str, Any] = "inception",
        output: str | None = None,
        directions: int = 1000,
        seed: int = 2020,
    ) -> None:
        self.directions = positive_int("directions", directions)
        self.seed = integer("seed", seed)
        self.need = need_of(extractor, output, "rows")
        self.needs = self.reference_needs = (self.need,)
        self.figure = figure_name("mind", extractor, "inception")
        self.figures = {self.figure: False}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the distance. Raises UserError for an empty set."""
        rows = samples[self.need], reference[self.need]
        if not all(one.count for one in rows):
            raise UserError(f"{self.figure} needs at least one image in each set.")
        ours, theirs = (one.features().to(one.device).double() for one in rows)
        theirs = theirs.to(ours.device)
        dim = ours.shape[1]
        found = [
            squared_wasserstein(ours @ block, theirs @ block)
            for block in unit_directions(dim, self.directions, self.seed)
            .to(ours.device)
            .split(BLOCK, dim=1)
        ]
        return {self.figure: float(FACTOR * dim * torch.cat(found).mean())}

    def identity(self) -> dict[str, Any]:
        """Return the directions."""
        return {"directions": self.directions, "seed": self.seed}
