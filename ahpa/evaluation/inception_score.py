"""The Inception Score (arXiv:1606.03498, eq. 1), as ADM's evaluator computes it."""

from collections.abc import Mapping
from typing import Any

import torch

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from .extractors import own_extractor
from .statistics import SPLIT, SplitSums


def inception_score(sums: SplitSums) -> float:
    """Return the mean over splits of exp(mean_n KL(p_n || mean p)).

    With n images of a split, mean_n KL(p_n || mean p) = (1/n) sum_n sum_k p log p - sum_k m log m,
    m = mean p. A last split that is not full counts as the others, as in ADM's evaluator.

    Args:
        sums: The sums over the images' softmax.

    Raises:
        UserError: If there are no images.
    """
    if not sums.splits:
        raise UserError("the Inception Score needs at least one image.")
    scores = []
    for count, shares, negative_entropy in sums.splits.values():
        mean = shares / count
        divergence = negative_entropy / count - torch.xlogy(mean, mean).sum()
        scores.append(divergence.exp())
    return float(torch.stack(scores).mean())


@METRICS.register_module(name="is")
class InceptionScore(Metric):
    """The Inception Score over splits of 5,000 consecutive images; logits have no bias.

    Samples that are sorted by class give a lower score than shuffled ones, since a split then holds
    fewer classes.

    Args:
        extractor: "inception", or its config with a weight file.
    """

    figures = {"is": True}

    def __init__(self, *, extractor: str | Mapping[str, Any] = "inception") -> None:
        self.need = Need(own_extractor("is", extractor, "inception"), "logits", "splits")
        self.needs = (self.need,)

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the score; there is no reference."""
        return {"is": inception_score(samples[self.need])}

    def identity(self) -> dict[str, Any]:
        """Return the size of a split."""
        return {"split": SPLIT}
