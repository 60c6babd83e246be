"""Improved precision and recall (arXiv:1904.06991), as ADM's evaluator computes them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from ..registry.validation import positive_int
from .extractors import figure_name, need_of
from .statistics import Rows

BLOCK = 1 << 25  # distances that are held at once
ROUNDING = 1e-12  # squared distances below this share of the squared norms are rounding


def distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Yield squared distances, float64, in blocks of rows of `first`.

    Args:
        first: Features [N, D].
        second: Features [M, D], on the device of the computation.

    Yields:
        [n, M], together all N rows.
    """
    theirs = second.double()
    their_norms = theirs.square().sum(1)
    for rows in first.split(max(1, BLOCK // max(1, len(second)))):
        ours = rows.to(second.device).double()
        norms = ours.square().sum(1)[:, None] + their_norms
        found = norms - 2 * ours @ theirs.mT
        yield torch.where(found > ROUNDING * norms, found, 0.0)


def radii(features: Tensor, neighbours: int) -> Tensor:
    """Return the squared distance of each feature to its k-th nearest other one, [N] float64."""
    blocks = distances(features, features)
    return torch.cat([block.kthvalue(neighbours + 1, 1)[0] for block in blocks])


def covered(features: Tensor, manifold: Tensor, manifold_radii: Tensor) -> float:
    """Return the share of features that lie in a ball around at least one point of a manifold.

    Args:
        features: Features [N, D].
        manifold: The balls' centres [M, D].
        manifold_radii: Their squared radii [M].
    """
    inside = [(block <= manifold_radii).any(1) for block in distances(features, manifold)]
    return float(torch.cat(inside).double().mean())


@METRICS.register_module(name="precision-recall")
class PrecisionRecall(Metric):
    """Precision: the share of samples near the reference; recall: the share of the reference near
    the samples. Near means within the distance of a point to its third nearest neighbour.

    ADM compares all samples with 10,000 reference images. Distances are float64.

    Args:
        extractor: Name or config of the feature extractor.
        output: Its output; None for its first one, Inception's pool.
        neighbours: Number of neighbours k that a ball reaches, without the point itself.

    Raises:
        ConfigError: If there is no such extractor or output.
    """

    def __init__(
        self,
        *,
        extractor: str | Mapping[str, Any] = "inception",
        output: str | None = None,
        neighbours: int = 3,
    ) -> None:
        self.neighbours = positive_int("neighbours", neighbours)
        self.need = need_of(extractor, output, "rows")
        self.needs = self.reference_needs = (self.need,)
        self.precision = figure_name("precision", extractor, "inception")
        self.recall = figure_name("recall", extractor, "inception")
        self.figures = {self.precision: True, self.recall: True}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute both shares. Raises UserError for too few images."""
        ours, theirs = samples[self.need], reference[self.need]
        found = [_placed(rows, self.neighbours) for rows in (ours, theirs)]
        sample_features, reference_features = found
        reached = [radii(features, self.neighbours) for features in found]
        return {
            self.precision: covered(sample_features, reference_features, reached[1]),
            self.recall: covered(reference_features, sample_features, reached[0]),
        }

    def identity(self) -> dict[str, Any]:
        """Return the number of neighbours."""
        return {"neighbours": self.neighbours}


def _placed(rows: Rows, neighbours: int) -> Tensor:
    """Return the features where they are compared. Raises UserError for too few of them."""
    if rows.count <= neighbours:
        raise UserError(
            f"precision and recall need more than {neighbours} images in each set, got "
            f"{rows.count}."
        )
    return rows.features().to(rows.device)
