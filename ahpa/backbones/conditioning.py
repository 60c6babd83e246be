"""What a backbone is conditioned on: class labels, a share of which is dropped in training for guidance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import CONDITIONERS, UserError
from ..registry.contracts import Conditioner, Step


@CONDITIONERS.register_module()
class ClassLabels(Conditioner):
    """Labels, replaced by the null class (number `num_classes`) with probability `dropout` in training (0.1: DiT).

    The draw comes from the step's generator, once and before the backbone, so that a teacher shares it. ValueError for
    a backbone without classes.
    """

    takes = "classes"

    def __init__(self, *, backbone, dropout: float = 0.1):
        super().__init__()
        num_classes = getattr(backbone, "num_classes", None)
        if num_classes is None:
            raise ValueError(f"ClassLabels: a {type(backbone).__name__} takes no class labels; use TextConditioner.")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: must be in [0, 1], got {dropout}.")
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, step: Step) -> Tensor:
        """step.batch['label'] [B] long -> [B] long with some of them null. ValueError for labels out of range (looked
        at on the CPU only: on a GPU that would wait for the device)."""
        label = step.batch["label"]
        if (
            label.device.type == "cpu"
            and len(label)
            and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes
        ):
            raise ValueError(
                f"labels must be in 0..{self.num_classes - 1}, got {int(label.min())}..{int(label.max())}."
            )
        drop = torch.rand(len(label), generator=step.generator, device=label.device) < self.dropout
        return torch.where(drop, self.num_classes, label)

    def null(self, count: int, device) -> Tensor:
        """The null condition for `count` samples."""
        return torch.full((count,), self.num_classes, dtype=torch.long, device=device)

    def all(self) -> list[int]:
        """Every condition there is, for samples of each."""
        return list(range(self.num_classes))

    def encode(self, labels: Sequence[int], device) -> Tensor:
        """The conditions of samples, [B] long. UserError for a number that is no class."""
        wrong = [label for label in labels if isinstance(label, str) or not 0 <= label < self.num_classes]
        if wrong:
            raise UserError(f"classes: {wrong[0]!r} is not in 0..{self.num_classes - 1}.")
        return torch.tensor(labels, dtype=torch.long, device=device)

    def example(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random labels."""
        return {"label": torch.randint(0, self.num_classes, (count,), generator=generator)}
