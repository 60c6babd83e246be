"""Maximum mean discrepancies: KID (polynomial kernel) and CMMD (Gaussian kernel)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from ..registry.validation import integer, positive, positive_int
from .extractors import figure_name, need_of
from .statistics import Rows

BLOCK = 2048  # rows of a kernel matrix that are held at once


def polynomial_mmd(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared discrepancy under k(x, y) = (x.y / D + 1)^3.

    Args:
        first: Features [n, D], n of at least 2.
        second: Features [m, D], m of at least 2.
    """
    ours, theirs = first.double(), second.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT / x.shape[1] + 1) ** 3

    total = torch.zeros((), dtype=torch.float64, device=ours.device)
    for x in (ours, theirs):
        within = kernel(x, x)
        total += (within.sum() - within.trace()) / (len(x) * (len(x) - 1))
    return float(total - 2 * kernel(ours, theirs).mean())


def gaussian_mean(first: Tensor, second: Tensor, sigma: float) -> float:
    """Return the mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs, in blocks."""
    total = 0.0
    theirs = second.double()
    for rows in first.split(BLOCK):
        x = rows.double()
        squared = x.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * x @ theirs.mT
        total += float((-squared.clamp_min(0) / (2 * sigma**2)).exp().sum())
    return total / (len(first) * len(second))


def features_on(rows: Rows, least: int, figure: str) -> Tensor:
    """Return the features where they are compared. Raises UserError for fewer than `least`."""
    if rows.count < least:
        raise UserError(f"{figure} needs at least {least} images in each set, got {rows.count}.")
    return rows.features().to(rows.device)


@METRICS.register_module(name="kid")
class KID(Metric):
    """The kernel Inception distance (arXiv:1801.01401): the mean over random subsets of the
    unbiased squared discrepancy under the polynomial kernel of degree 3.

    Subsets are drawn as torch-fidelity draws them, so that both give the same figure.

    Args:
        extractor: Name or config of the feature extractor.
        output: Its output; None for its first one, Inception's pool.
        subsets: Number of subsets.
        subset_size: Images of a subset; of a smaller set all are taken.
        seed: Seed of the draws.

    Raises:
        ConfigError: If there is no such extractor or output, or a number is out of its range.
    """

    def __init__(
        self,
        *,
        extractor: str | Mapping[str, Any] = "inception",
        output: str | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 2020,
    ) -> None:
        self.subsets = positive_int("subsets", subsets)
        self.subset_size = integer("subset_size", subset_size, least=2)
        self.seed = integer("seed", seed, most=2**32 - 1)
        self.need = need_of(extractor, output, "rows")
        self.needs = self.reference_needs = (self.need,)
        self.figure = figure_name("kid", extractor, "inception")
        self.figures = {self.figure: False}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the mean over subsets. Raises UserError for fewer than two images."""
        ours = features_on(samples[self.need], 2, self.figure)
        theirs = features_on(reference[self.need], 2, self.figure)
        size = min(self.subset_size, len(ours), len(theirs))
        draw = np.random.RandomState(self.seed)
        found = []
        for _ in range(self.subsets):
            chosen = [
                torch.from_numpy(draw.choice(len(features), size, replace=False))
                for features in (ours, theirs)
            ]
            pair = (x[index.to(x.device)] for x, index in zip((ours, theirs), chosen, strict=True))
            found.append(polynomial_mmd(*pair))
        return {self.figure: float(np.mean(found))}

    def identity(self) -> dict[str, Any]:
        """Return the subsets."""
        return {"subsets": self.subsets, "subset_size": self.subset_size, "seed": self.seed}


@METRICS.register_module(name="cmmd")
class CMMD(Metric):
    """CLIP's maximum mean discrepancy (arXiv:2401.09603): 1000 times the squared discrepancy of
    unit image embeddings of CLIP ViT-L/14 at 336 px under a Gaussian kernel of width 10.

    The paper's estimator: means over all pairs, those of a point with itself included.

    Args:
        extractor: "clip-l-336", or its config with a weight file.
        output: Its output; None for its first one, the image embedding.
        sigma: Width of the kernel.
        scale: Factor of the figure.
    """

    def __init__(
        self,
        *,
        extractor: str | Mapping[str, Any] = "clip-l-336",
        output: str | None = None,
        sigma: float = 10.0,
        scale: float = 1000.0,
    ) -> None:
        self.sigma = positive("sigma", sigma)
        self.scale = positive("scale", scale)
        self.need = need_of(extractor, output, "rows")
        self.needs = self.reference_needs = (self.need,)
        self.figure = figure_name("cmmd", extractor, "clip-l-336")
        self.figures = {self.figure: False}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the discrepancy of the normalised features."""
        ours, theirs = (
            torch.nn.functional.normalize(features_on(rows, 1, self.figure).double(), dim=1)
            for rows in (samples[self.need], reference[self.need])
        )
        within = sum(gaussian_mean(x, x, self.sigma) for x in (ours, theirs))
        found = within - 2 * gaussian_mean(ours, theirs, self.sigma)
        return {self.figure: self.scale * found}

    def identity(self) -> dict[str, Any]:
        """Return the kernel's width and the factor."""
        return {"sigma": self.sigma, "scale": self.scale}
