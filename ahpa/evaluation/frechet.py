"""The Frechet distance between Gaussians fitted to features: FID, sFID, FD-DINOv2, FDr6.

Must match: ADM's evaluator (guided-diffusion) and Heusel et al. (arXiv:1706.08500, eq. 6), without
a matrix square root of a product, which NumPy and OpenBLAS builds compute differently.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from .extractors import extractor_key, extractor_name, need_of, own_extractor
from .statistics import Moments

logger = logging.getLogger("ahpa")


def root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix [D, D]."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) in float64.

    The trace of the root of S1 S2 is the sum of the roots of the eigenvalues of
    S1^(1/2) S2 S1^(1/2), which is symmetric and positive semidefinite, so the result is real for
    any number of images.

    Args:
        first: Moments of one set.
        second: Moments of another, of the same dimension.

    Raises:
        UserError: If a set has fewer than two images, the dimensions differ, or a feature is not
            finite.
    """
    if first.dim != second.dim:
        raise UserError(
            f"the features of the two sets have {first.dim} and {second.dim} dimensions; use the "
            "same extractor for both."
        )
    covariances = first.covariance, second.covariance.to(first.covariance)
    assert first.mean is not None and second.mean is not None
    difference = first.mean - second.mean.to(first.mean)
    if not all(value.isfinite().all() for value in (difference, *covariances)):
        raise UserError("some features are not finite, so there is no Frechet distance.")
    half = root(covariances[0])
    inner = half @ covariances[1] @ half
    values = torch.linalg.eigvalsh((inner + inner.mT) / 2)
    traces = covariances[0].trace() + covariances[1].trace()
    return float(difference @ difference + traces - 2 * values.clamp_min(0).sqrt().sum())


@METRICS.register_module(name="fd")
class FrechetDistance(Metric):
    """The Frechet distance on the features of any extractor: "fd:tiny-vit".

    Args:
        extractor: Name or config of the feature extractor.
        output: Its output; None for its first one.

    Raises:
        ConfigError: If there is no such extractor or output.
    """

    def __init__(self, *, extractor: str | Mapping[str, Any], output: str | None = None) -> None:
        self.need = need_of(extractor, output, "moments")
        self.needs = self.reference_needs = (self.need,)
        self.figure = f"fd:{extractor_name(extractor)}"
        self.figures = {self.figure: False}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the distance; warns if there are fewer images than dimensions."""
        ours, theirs = samples[self.need], reference[self.need]
        for what, moments in (("samples", ours), ("reference images", theirs)):
            if moments.counted and moments.count <= moments.dim:
                logger.warning(
                    "%s: %d %s for %d dimensions: the covariance has no full rank, and the figure "
                    "compares only with figures of the same number of images",
                    self.figure,
                    moments.count,
                    what,
                    moments.dim,
                )
        return {self.figure: frechet_distance(ours, theirs)}


@METRICS.register_module(name="fid")
class FID(FrechetDistance):
    """The Frechet Inception distance (arXiv:1706.08500), as ADM's evaluator computes it.

    Args:
        extractor: "inception", or its config with a weight file.
    """

    def __init__(self, *, extractor: str | Mapping[str, Any] = "inception") -> None:
        own_extractor("fid", extractor, "inception")
        super().__init__(extractor=extractor, output="pool")
        self.figure = "fid"
        self.figures = {"fid": False}


@METRICS.register_module(name="sfid")
class SpatialFID(FrechetDistance):
    """The Frechet distance on 7 channels of a 17 x 17 layer (sFID, arXiv:2103.03841), flattened in
    the order height, width, channel.

    Args:
        extractor: "inception", or its config with a weight file.
    """

    def __init__(self, *, extractor: str | Mapping[str, Any] = "inception") -> None:
        own_extractor("sfid", extractor, "inception")
        super().__init__(extractor=extractor, output="spatial")
        self.figure = "sfid"
        self.figures = {"sfid": False}


@METRICS.register_module(name="fd-dinov2")
class FDDinoV2(FrechetDistance):
    """The Frechet distance on the class token of DINOv2-L at 224 px (arXiv:2306.04675).

    Args:
        extractor: "dinov2-l", or its config with a weight file.
    """

    def __init__(self, *, extractor: str | Mapping[str, Any] = "dinov2-l") -> None:
        own_extractor("fd-dinov2", extractor, "dinov2-l")
        super().__init__(extractor=extractor, output="cls")
        self.figure = "fd-dinov2"
        self.figures = {"fd-dinov2": False}


FDR6 = {  # extractor -> output, and the constant by which its distance is divided
    "inception": ("pool", 1.68),
    "convnextv2-b": ("pooled", 56.87),
    "dinov2-l": ("cls", 14.19),
    "mae-l": ("cls", 0.04),
    "siglip2-so400m": ("pooled", 0.60),
    "clip-l": ("image", 5.60),
}


@METRICS.register_module(name="fdr6")
class FDr6(Metric):
    """The mean over six encoders of the Frechet distance over a constant (arXiv:2604.28190).

    The constants are the paper's for ImageNet 256. Which edition of an encoder it takes is not in
    our source; ours are in `ahpa.evaluation.extractors.PRESETS` and part of the protocol.
    """

    def __init__(self) -> None:
        self.terms: dict[Need, float] = {}
        for name, (output, constant) in FDR6.items():
            self.terms[Need(extractor_key(name), output, "moments")] = constant
        self.needs = self.reference_needs = tuple(self.terms)
        self.figures = {"fdr6": False}

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the mean of the six ratios."""
        ratios = [
            frechet_distance(samples[need], reference[need]) / constant
            for need, constant in self.terms.items()
        ]
        return {"fdr6": sum(ratios) / len(ratios)}
