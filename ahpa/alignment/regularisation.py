"""An alignment without a prior and without a target: a regulariser of a tapped block (such as the
Dispersive loss, arXiv:2506.09027)."""

from collections.abc import Mapping
from typing import Any

from ..registry import ALIGNMENTS, REGULARISERS, build
from ..registry.contracts import (
    Alignment,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    Progress,
    Regulariser,
    Tap,
    TargetView,
)
from ..registry.validation import block_number
from ..registry.values import Term
from .checks import check_name
from .schedules import Weight, build_weight


@ALIGNMENTS.register_module()
class Regularisation(Alignment):
    """A regulariser of the tokens of one block, without a projector.

    Args:
        name: Name of the alignment, which the name of its term begins with.
        geometry: Sizes of the model.
        flow: The flow (unused).
        priors: Levels of every prior of the model (unused).
        tap: Number of the tapped block, from 1.
        regulariser: Config of the regulariser.
        weight: Weight of the regulariser, a number or the config of a schedule.

    Raises:
        ConfigError: If an option is not valid.
    """

    regulariser: Regulariser

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
        tap: int,
        regulariser: Mapping[str, Any] | Regulariser,
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(
            name=check_name("an alignment", name), geometry=geometry, flow=flow, priors=priors
        )
        where = f"model.alignments.{name}"
        self.tap = block_number("tap", tap, geometry.depth)
        self.taps = frozenset({Tap(tap)})
        self.weight = build_weight(weight, where=f"{where}.weight")
        self.regulariser = build(
            REGULARISERS, regulariser, where=f"{where}.regulariser", dim=geometry.width
        )
        self.weight.check_terms(["regulariser"], f"{where}.weight")

    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Evaluate the regulariser.

        Args:
            view: The step's values; `view.out.taps` holds the tapped block.
            features: {prior: {level: tensor}} (unused).
            progress: Where the run stands.

        Returns:
            The term "<alignment>/regulariser".
        """
        value = self.regulariser(view.out.tokens(self.tap))
        term = Term(f"{self.name}/regulariser", value, self.weight(progress))
        losses = Losses((term,))
        if self.training:
            self.weight.observe(losses, progress)
        return losses

    def ended(self, progress: Progress) -> bool:
        """Whether the weight is 0 from this step on."""
        return self.weight.ended(progress)

    def summary(self) -> str:
        """Describe the alignment in one line."""
        return f"block {self.tap} <- {type(self.regulariser).__name__}, without a prior"
