"""Alignment of attention maps: the student's attention logits are pulled towards a teacher's, block
by block (HASTE, arXiv:2505.16792)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import ALIGNMENTS, ConfigError, nearest
from ..registry.contracts import (
    Alignment,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    Progress,
    Tap,
    TargetView,
)
from ..registry.validation import block_number
from .checks import check_name, levels_of
from .criteria import Criteria, mean_of_pairs
from .schedules import Weight, build_weight

DISTILLATION = {"attention": {"type": "AttentionDistillation"}}


@ALIGNMENTS.register_module()
class AttentionAlignment(Alignment):
    """The mean of the criteria over pairs of attention logits: block i of the student, level i of
    the prior.

    HASTE pairs blocks 5..8 of the student with blocks 9..12 of DINOv2-B. Rows and columns of the
    student's prefix tokens are left out.

    Args:
        name: Name of the alignment, which the names of its terms begin with.
        geometry: Sizes of the model.
        flow: The flow (unused).
        priors: Levels of every prior of the model.
        blocks: Numbers of the student's blocks, from 1.
        source: Name of the prior.
        levels: Names of as many attention levels of the prior, in the order of `blocks`.
        criteria: {name: config of a pair loss of attention logits}, each with an optional `weight`
            of its own; {"attention": AttentionDistillation} by default.
        weight: Weight of the criteria, a number or the config of a schedule.

    Raises:
        ConfigError: If blocks and levels do not match, or a level holds no attention logits.
    """

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
        blocks: Sequence[int],
        source: str,
        levels: Sequence[str],
        criteria: Mapping[str, Any] | None = None,
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(
            name=check_name("an alignment", name), geometry=geometry, flow=flow, priors=priors
        )
        where = f"model.alignments.{name}"
        self.blocks = _check_blocks(blocks, geometry.depth)
        self.taps = frozenset(Tap(block, "attention") for block in self.blocks)
        self.source = source
        self.levels, heads = _check_levels(levels, levels_of(source, priors, where))
        if len(self.levels) != len(self.blocks):
            raise ConfigError(
                f"levels: one for each of the {len(self.blocks)} blocks is needed, "
                f"got {len(self.levels)}."
            )
        self.reads = {source: self.levels}
        self.weight = build_weight(weight, where=f"{where}.weight")
        given = DISTILLATION if criteria is None else criteria
        both = min(heads, geometry.num_heads or heads)
        self.criteria = Criteria(given, dim=both, where=where)
        self.weight.check_terms(self.criteria.value_names(), f"{where}.weight")

    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Compare the attention logits of every pair.

        Args:
            view: The step's values; `view.out.taps` holds the attention logits of the blocks.
            features: {prior: {level: logits [B, H, N, N]}}.
            progress: Where the run stands.

        Returns:
            The terms "<alignment>/<criterion>", each a mean over the pairs.
        """
        prefix = view.out.prefix
        compared = []
        for block, level in zip(self.blocks, self.levels, strict=True):
            logits = view.out.taps[Tap(block, "attention")]  # [B, H, P+N, P+N]
            student = logits[:, :, prefix:, prefix:]
            teacher = features[self.source][level]
            if student.shape[-2:] != teacher.shape[-2:]:
                raise ConfigError(
                    f"model.alignments.{self.name}: level {level!r} has logits over "
                    f"{tuple(teacher.shape[-2:])} tokens, block {block} over "
                    f"{tuple(student.shape[-2:])}."
                )
            compared.append(self.criteria.compare(student, teacher))
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
        blocks = ", ".join(str(block) for block in self.blocks)
        return f"attention of blocks {blocks} <- {self.source} ({', '.join(self.levels)})"


def _check_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    if isinstance(blocks, str) or not isinstance(blocks, Sequence) or not blocks:
        raise ConfigError(f"blocks: a list of block numbers is needed, got {blocks!r}.")
    found = tuple(block_number("blocks", block, depth) for block in blocks)
    if len(set(found)) < len(found):
        raise ConfigError(f"blocks: each block can be given once only, got {list(found)}.")
    return found


def _check_levels(
    names: Sequence[str], levels: Mapping[str, LevelSpec]
) -> tuple[tuple[str, ...], int]:
    """Return the valid names and the number of attention heads, which all levels share."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ConfigError(f"levels: a list of level names is needed, got {names!r}.")
    valid = [name for name, level in levels.items() if level.attention]
    for name in names:
        if name not in levels:
            raise ConfigError(f"levels: the prior has no level {name!r}{nearest(name, valid)}")
        if name not in valid:
            hint = nearest(name, valid)
            raise ConfigError(f"levels: {name!r} does not hold attention logits{hint}")
    heads = {levels[name].channels for name in names}
    if len(heads) > 1:
        shown = ", ".join(f"{name} ({levels[name].channels})" for name in names)
        raise ConfigError(f"levels: all need the same number of attention heads, got {shown}.")
    return tuple(names), heads.pop()
