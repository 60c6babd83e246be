"""How well images follow their prompts: CLIPScore and PickScore."""

from collections.abc import Mapping
from typing import Any

from ..registry import METRICS, UserError
from ..registry.contracts import Metric, Need
from ..registry.validation import positive
from .extractors import figure_name, need_of


class MeanScore(Metric):
    """Base: the mean of an extractor's score over all images with their prompts.

    Args:
        figure: Name of the figure.
        extractor: Name or config of the feature extractor.
        usual: Name of the extractor whose figure has no ending.

    Raises:
        ConfigError: If there is no such extractor, or it gives no score.
    """

    def __init__(self, *, figure: str, extractor: str | Mapping[str, Any], usual: str) -> None:
        self.need = need_of(extractor, "score", "rows")
        self.needs = (self.need,)
        self.figure = figure_name(figure, extractor, usual)
        self.figures = {self.figure: True}

    def scores(self, samples: Mapping[Need, Any]) -> Any:
        """Return the score of each image, [N] float64. Raises UserError if there are none."""
        rows = samples[self.need]
        if not rows.count:
            raise UserError(f"{self.figure} needs at least one image with a prompt.")
        return rows.features()[:, 0].double()

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the mean; there is no reference."""
        return {self.figure: float(self.scores(samples).mean())}


@METRICS.register_module(name="clipscore")
class CLIPScore(MeanScore):
    """CLIPScore (arXiv:2104.08718): the mean over images of w max(cos(image, prompt), 0).

    Args:
        extractor: "clip-l-score", CLIP ViT-L/14; or the name or config of another one.
        scale: The factor w: 100, as most tables print it; Hessel et al. take 2.5 with ViT-B/32 and
            the prefix "A photo depicts ".

    Raises:
        ConfigError: If there is no such extractor, or it gives no score.
    """

    def __init__(
        self, *, extractor: str | Mapping[str, Any] = "clip-l-score", scale: float = 100.0
    ) -> None:
        super().__init__(figure="clipscore", extractor=extractor, usual="clip-l-score")
        self.scale = positive("scale", scale)

    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the mean of the clamped, scaled cosines."""
        return {self.figure: float((self.scale * self.scores(samples).clamp_min(0)).mean())}

    def identity(self) -> dict[str, Any]:
        """Return the factor."""
        return {"scale": self.scale}


@METRICS.register_module(name="pickscore")
class PickScore(MeanScore):
    """The mean PickScore (arXiv:2305.01569) of images and their prompts.

    Args:
        extractor: "pickscore", or its config with a weight file.
    """

    def __init__(self, *, extractor: str | Mapping[str, Any] = "pickscore") -> None:
        super().__init__(figure="pickscore", extractor=extractor, usual="pickscore")
