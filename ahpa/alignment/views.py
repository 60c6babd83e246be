"""An alignment without a prior: noisings of one image are pulled towards each other (DUPA)."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from ..registry import ALIGNMENTS, PROJECTORS, ConfigError, build
from ..registry.contracts import (
    Alignment,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    Progress,
    Projector,
    Tap,
    TargetView,
)
from ..registry.validation import block_number, positive_int
from .checks import check_name
from .criteria import COSINE, Criteria, mean_of_pairs
from .projectors import meta_call
from .schedules import Weight, build_weight


@ALIGNMENTS.register_module()
class ViewAlignment(Alignment):
    """The mean of the criteria over all pairs of views of the projected tap.

    With `flow.views` = K the batch holds each image K times, each with its own t and noise; the
    projected tokens of every pair of views are compared. Both sides learn: there is no
    stop-gradient and no predictor.

    Args:
        name: Name of the alignment, which the names of its terms begin with.
        geometry: Sizes of the model.
        flow: The flow, which must draw at least two views.
        priors: Levels of every prior of the model (unused).
        tap: Number of the tapped block, from 1.
        out_dim: Width of the projection.
        projector: Config of the projector, the same for every view; `MLPProjector` by default.
        criteria: {name: config of a pair loss}, each with an optional `weight` of its own; the
            cosine by default.
        weight: Weight of the criteria, a number or the config of a schedule.

    Raises:
        ConfigError: If the flow draws one view only, or an option is not valid.
    """

    projector: Projector

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
        tap: int,
        out_dim: int = 768,
        projector: Mapping[str, Any] | Projector | None = None,
        criteria: Mapping[str, Any] | None = None,
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(
            name=check_name("an alignment", name), geometry=geometry, flow=flow, priors=priors
        )
        where = f"model.alignments.{name}"
        self.tap = block_number("tap", tap, geometry.depth)
        self.taps = frozenset({Tap(tap)})
        if flow.views < 2:
            raise ConfigError(
                "ViewAlignment compares views of one image: set model.flow.views to 2 or more, "
                f"it is {flow.views}."
            )
        self.weight = build_weight(weight, where=f"{where}.weight")
        self.projector = build(
            PROJECTORS,
            {"type": "MLPProjector"} if projector is None else projector,
            where=f"{where}.projector",
            dim=geometry.width,
            out_dim=positive_int("out_dim", out_dim),
        )
        given = COSINE if criteria is None else criteria
        self.criteria = Criteria(given, dim=out_dim, where=where)
        self.weight.check_terms(self.criteria.value_names(), f"{where}.weight")

    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Compare every pair of views.

        Args:
            view: The step's values; `view.out.taps` holds the tapped block.
            features: {prior: {level: tensor}} (unused).
            progress: Where the run stands.

        Returns:
            The terms "<alignment>/<criterion>".
        """
        tokens = view.out.tokens(self.tap).without_prefix()
        tokens.require_all("a comparison of views")
        parts = self.projector(tokens).chunk(view.noised.views)  # [B, N, C] for each view
        compared = [self.criteria.compare(a, b) for a, b in combinations(parts, 2)]
        weight = self.weight(progress)
        terms = [mean.term(self.name, weight) for mean in mean_of_pairs(compared)]
        losses = Losses(tuple(terms))
        if self.training:
            self.weight.observe(losses, progress)
        return losses

    def ended(self, progress: Progress) -> bool:
        """Whether the weight is 0 from this step on; a discriminator goes on."""
        return self.weight.ended(progress) and self.criteria.all_weighted

    def summary(self) -> str:
        """Describe the alignment in one line."""
        return f"block {self.tap} <- the other views"

    def probes(self) -> dict[str, Callable[[], Any]]:
        """Return the projector's call on the meta device."""
        return {"projector": meta_call(self.projector, self.geometry, 0)}
