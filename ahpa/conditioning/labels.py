"""Class labels as the condition; some are dropped in training for classifier-free guidance."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import CONDITIONERS, ConfigError, UserError
from ..registry.contracts import Clean, Condition, Conditioner, Geometry
from ..registry.validation import probability


@CONDITIONERS.register_module()
class ClassLabels(Conditioner):
    """Class labels [B]; a dropped label becomes the null class `num_classes`.

    Labels are dropped once for a step, before the backbone and from the step's generator, so that
    a teacher shares the dropout.

    Args:
        geometry: Sizes of the model.
        dropout: Probability of dropping a label in training (0.1 in DiT, arXiv:2212.09748).

    Raises:
        ConfigError: If the backbone takes no class labels, or if `dropout` is not in [0, 1].
    """

    takes = "classes"

    def __init__(self, *, geometry: Geometry, dropout: float = 0.1) -> None:
        super().__init__(geometry=geometry)
        if geometry.num_classes is None:
            raise ConfigError(
                "ClassLabels: the backbone takes no class labels; use TextConditioner."
            )
        self.num_classes = geometry.num_classes
        self.dropout = probability("dropout", dropout)

    def forward(self, clean: Clean, rng: torch.Generator | None) -> Condition:
        """Return the labels [B], some of which are dropped.

        Raises:
            UserError: If the batch has no labels.
            ValueError: If a label is out of range. Only checked on the CPU, since a GPU would have
                to be waited for.
        """
        labels = clean.labels
        if labels is None:
            raise UserError(
                "ClassLabels: the data set gives no labels; use one with classes, or a backbone "
                "that takes text with TextConditioner."
            )
        if labels.device.type == "cpu" and len(labels):
            self._check_range(int(labels.min()), int(labels.max()))
        dropped = torch.rand(len(labels), generator=rng, device=labels.device) < self.dropout
        return Condition(torch.where(dropped, self.num_classes, labels), dropped)

    def _check_range(self, low: int, high: int) -> None:
        if not 0 <= low <= high < self.num_classes:
            raise ValueError(f"labels: must be in 0..{self.num_classes - 1}, got {low}..{high}.")

    def null(self, count: int, device: torch.device | str) -> Tensor:
        """Return the null class [count]."""
        return torch.full((count,), self.num_classes, dtype=torch.long, device=device)

    def all(self) -> list[Any]:
        """List every class, so that samples show each."""
        return list(range(self.num_classes))

    def encode(self, wanted: Sequence[Any], device: torch.device | str) -> Tensor:
        """Return class numbers as labels [len(wanted)]. Raises UserError for an unknown one."""
        labels = [self._label(label) for label in wanted]
        return torch.tensor(labels, dtype=torch.long, device=device)

    def _label(self, wanted: Any) -> int:
        """Return an integer of any library, such as numpy.int64, as a label. Raises UserError."""
        try:
            label = -1 if isinstance(wanted, bool) else operator.index(wanted)
        except TypeError:
            label = -1
        if not 0 <= label < self.num_classes:
            raise UserError(f"classes: {wanted!r} is not in 0..{self.num_classes - 1}.")
        return label

    def example(self, count: int, rng: torch.Generator) -> dict[str, Any]:
        """Return random labels [count] as a synthetic batch's entry 'label'."""
        return {"label": torch.randint(0, self.num_classes, (count,), generator=rng)}
