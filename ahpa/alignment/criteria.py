"""The criteria of an alignment: named pair losses, each with its share of the weight."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..registry import PAIR_LOSSES, ConfigError, build
from ..registry.contracts import PairLoss
from ..registry.validation import weight as valid_weight
from ..registry.values import Term
from .checks import check_name

COSINE = {"cosine": {"type": "CosineLoss"}}


class Comparison(NamedTuple):
    """One value of one criterion.

    Attributes:
        name: "<criterion>", or "<criterion>/<item>" for a criterion that returns several.
        value: The unweighted value, 0-d.
        share: Factor of the alignment's weight; None if no weight scales the value, such as the
            discriminator loss of an adversarial criterion.
    """

    name: str
    value: Tensor
    share: float | None

    def term(self, alignment: str, weight: float | Tensor) -> Term:
        """Return the term of the objective, given the alignment's name and weight."""
        own = 1.0 if self.share is None else weight * self.share
        return Term(f"{alignment}/{self.name}", self.value, own)


class Criteria(nn.ModuleDict):
    """Named pair losses that compare the same two tensors.

    Args:
        criteria: {name: config of a pair loss}, each with an optional `weight` of its own.
        dim: Width of the compared tokens.
        where: Place in the config, for messages.
        reserved: Names that a criterion must not have, because other terms have them.

    Attributes:
        shares: {name: weight of the criterion}.
        unweighted: {name: its items that no weight scales}.

    Raises:
        ConfigError: If there is no criterion, or a name or a weight is not valid.
    """

    def __init__(
        self,
        criteria: Mapping[str, Any],
        *,
        dim: int,
        where: str,
        reserved: Collection[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(criteria, Mapping) or not criteria:
            raise ConfigError(
                f"criteria: must be {{name: pair loss}} with at least one, got {criteria!r}."
            )
        self.shares: dict[str, float] = {}
        self.unweighted: dict[str, tuple[str, ...]] = {}
        unusable = set(dir(self))  # a ModuleDict cannot hold a module under these names
        for name, cfg in criteria.items():
            check_name("a criterion", name)
            if name in reserved:
                raise ConfigError(
                    f"criteria: {name!r} is the name of the alignment's own term or figure; "
                    "choose another."
                )
            if name in unusable:
                raise ConfigError(f"criteria: {name!r} is reserved by PyTorch; choose another.")
            share = 1.0
            if isinstance(cfg, Mapping) and "weight" in cfg:
                share = valid_weight(f"criteria.{name}.weight", cfg["weight"])
                cfg = {option: value for option, value in cfg.items() if option != "weight"}
            self[name] = build(PAIR_LOSSES, cfg, where=f"{where}.criteria.{name}", dim=dim)
            self.shares[name] = share
            self.unweighted[name] = cast(PairLoss, self[name]).unweighted

    @property
    def all_weighted(self) -> bool:
        """Whether the alignment's weight scales every value."""
        return not any(self.unweighted.values())

    def value_names(self) -> list[str]:
        """List the names of the values in their order: "<criterion>" or "<criterion>/<item>"."""
        return [
            f"{name}/{item}" if item else name
            for name, loss in self.pair_losses()
            for item in loss.items or ("",)
        ]

    def pair_losses(self) -> Iterable[tuple[str, PairLoss]]:
        """Iterate over (name, pair loss)."""
        return cast(Iterable[tuple[str, PairLoss]], self.items())

    def compare(
        self, pred: Tensor, target: Tensor, token_weights: Tensor | None = None
    ) -> list[Comparison]:
        """Evaluate all criteria.

        Args:
            pred: Projected tokens [B, N, dim].
            target: Target of the same shape.
            token_weights: [B, N] of mean 1, or None for equal weights.
        """
        values = {
            name: criterion(pred, target, token_weights) for name, criterion in self.pair_losses()
        }
        return self.comparisons(values)

    def comparisons(self, values: Mapping[str, Tensor | dict[str, Tensor]]) -> list[Comparison]:
        """Split what the criteria returned, {name: value or items}, into single values."""
        found = []
        for name, value in values.items():
            share = self.shares[name]
            if not isinstance(value, Mapping):
                found.append(Comparison(name, value, share))
                continue
            for item, part in value.items():
                own = None if item in self.unweighted[name] else share
                found.append(Comparison(f"{name}/{item}", part, own))
        return found


def mean_of_pairs(compared: Sequence[Sequence[Comparison]]) -> list[Comparison]:
    """Return the mean of each value over several pairs, which the same criteria have compared."""
    means = []
    for same in zip(*compared, strict=True):
        values = torch.stack([comparison.value for comparison in same])
        means.append(same[0]._replace(value=values.mean()))
    return means
