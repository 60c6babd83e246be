"""`PerClassDropout`: class labels that are dropped with a probability of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ahpa.registry import CONDITIONERS, ConfigError, UserError
from ahpa.registry.contracts import Clean, Condition, Conditioner, Geometry
from ahpa.registry.validation import integer, probability


@CONDITIONERS.register_module()
class PerClassDropout(Conditioner):
    """Class labels [B]; a dropped label becomes the null class, more often for some classes.

    Args:
        geometry: The model's sizes; passed by ahpa.
        dropout: Probability of dropping a label of a class that `overrides` does not name.
        overrides: Pairs (class, probability), such as ((3, 0.5),).

    Raises:
        ConfigError: If the backbone takes no classes, or a class or a probability is out of range.
    """

    takes = "classes"
    table: Tensor

    def __init__(
        self,
        *,
        geometry: Geometry,
        dropout: float = 0.1,
        overrides: Sequence[tuple[int, float]] = (),
    ) -> None:
        super().__init__(geometry=geometry)
        if geometry.num_classes is None:
            raise ConfigError("PerClassDropout: the backbone takes no class labels.")
        self.num_classes = geometry.num_classes
        table = [probability("dropout", dropout)] * self.num_classes
        for pair in overrides if isinstance(overrides, (list, tuple)) else [overrides]:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ConfigError(f"overrides: must be pairs (class, probability), got {pair!r}.")
            label, chance = pair
            label = integer("overrides", label, most=self.num_classes - 1)
            table[label] = probability("overrides", chance)
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def forward(self, clean: Clean, rng: torch.Generator | None) -> Condition:
        """Return the labels [B], some of which are dropped. Raises UserError without labels."""
        labels = clean.labels
        if labels is None:
            raise UserError("PerClassDropout: the data set gives no labels.")
        chance = self.table[labels]
        dropped = torch.rand(len(labels), generator=rng, device=labels.device) < chance
        return Condition(torch.where(dropped, self.num_classes, labels), dropped)

    def null(self, count: int, device: torch.device | str) -> Tensor:
        """Return the null class [count]."""
        return torch.full((count,), self.num_classes, dtype=torch.long, device=device)

    def all(self) -> list[Any]:
        """List every class."""
        return list(range(self.num_classes))

    def encode(self, wanted: Sequence[Any], device: torch.device | str) -> Tensor:
        """Return class numbers as labels [len(wanted)]. Raises UserError for an unknown one."""
        for label in wanted:
            if not isinstance(label, int) or not 0 <= label < self.num_classes:
                raise UserError(f"classes: {label!r} is not in 0..{self.num_classes - 1}.")
        return torch.tensor(list(wanted), dtype=torch.long, device=device)

    def example(self, count: int, rng: torch.Generator) -> dict[str, Any]:
        """Return random labels [count] as a synthetic batch's entry "label"."""
        return {"label": torch.randint(0, self.num_classes, (count,), generator=rng)}
