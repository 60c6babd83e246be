"""Statistics of features that metrics are computed from, each gathered in one pass over the images.

Each has `add(indices, features)` for a batch, `merge(other)` for another part of the same set,
and a `state` of plain tensors from which `from_state` makes it again, for gathering over processes.
The result does not depend on the size or the order of the batches, up to rounding in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from ..registry import UserError

SPLIT = 5000  # consecutive images of a split of the Inception Score (ADM's evaluator)


class Statistic(ABC):
    """What is known of the features of a set of images.

    Attributes:
        count: Number of images.
    """

    count: int = 0

    @abstractmethod
    def add(self, indices: Tensor, features: Tensor) -> None:
        """Add a batch.

        Args:
            indices: Indices of the images, int64 [B].
            features: Their features [B, D], any float type.
        """

    @abstractmethod
    def merge(self, other: "Statistic") -> None:
        """Add what another statistic of the same kind has seen."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return plain tensors on the CPU that `from_state` turns into an equal statistic."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Statistic":
        """Make a statistic from what `state` returned."""


class Moments(Statistic):
    """Count, mean and covariance in float64.

    Each batch is centred by its own mean, and batches are merged by Chan, Golub and LeVeque's
    formula (1983), so that no large squares are subtracted from each other.

    Attributes:
        count: Number of images N.
        mean: [D] float64; None before the first batch.
        scatter: Sum of the outer products of the centred features, [D, D] float64.
        counted: Whether the number of images is known. A file with mean and covariance alone does
            not tell it; such moments can be compared but not merged.
    """

    def __init__(self) -> None:
        self.count = 0
        self.counted = True
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, count: int | None = None) -> "Moments":
        """Make moments from a known mean [D] and covariance [D, D] (ddof 1).

        Args:
            mean: Mean of the features.
            covariance: Their covariance.
            count: Number of images, at least 2; None if it is not known.
        """
        found = cls()
        found.counted = count is not None
        found.count = 2 if count is None else count
        found.mean = mean.double()
        found.scatter = covariance.double() * (found.count - 1)
        return found

    @property
    def dim(self) -> int:
        """Dimension D of the features; 0 before the first batch."""
        return 0 if self.mean is None else len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Covariance [D, D] with N - 1 in the denominator, as `numpy.cov`.

        Raises:
            UserError: If there are fewer than two images.
        """
        if self.count < 2 or self.scatter is None:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}.")
        return self.scatter / (self.count - 1)

    def add(self, indices: Tensor, features: Tensor) -> None:
        """Add the features [B, D] of a batch; the indices do not matter."""
        if not len(features):
            return
        values = features.detach().double()
        mean = values.mean(0)
        centred = values - mean
        self._join(len(values), mean, centred.mT @ centred)

    def merge(self, other: Statistic) -> None:
        """Add the images of another part of the set."""
        assert isinstance(other, Moments) and self.counted and other.counted
        if other.count:
            assert other.mean is not None and other.scatter is not None
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        total = self.count + count
        shift = mean.to(self.mean) - self.mean
        self.mean = self.mean + shift * (count / total)
        self.scatter += scatter.to(self.scatter)
        self.scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.count = total

    def state(self) -> dict[str, Tensor]:
        """Return count, mean and scatter."""
        empty = torch.empty(0, dtype=torch.float64)
        return {
            "count": torch.tensor(self.count if self.counted else -1),
            "mean": empty if self.mean is None else self.mean.cpu(),
            "scatter": empty if self.scatter is None else self.scatter.cpu(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Moments":
        """Make moments from `state`."""
        found = cls()
        count = int(state["count"])
        if count < 0:
            return cls.of(state["mean"], state["scatter"])
        if count:
            found.count, found.mean, found.scatter = count, state["mean"], state["scatter"]
        return found


class Rows(Statistic):
    """All features, float32 on the CPU; `features` returns them in the order of the images.

    Attributes:
        device: Where the features were computed, so that metrics can compare them there.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._indices: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, indices: Tensor, features: Tensor) -> None:
        """Add the features [B, D] of the images `indices` [B]."""
        self.device = features.device
        self._indices.append(indices.detach().long().cpu())
        self._features.append(features.detach().float().cpu())
        self.count += len(indices)

    def merge(self, other: Statistic) -> None:
        """Add the images of another part of the set."""
        assert isinstance(other, Rows)
        self._indices += other._indices
        self._features += other._features
        self.count += other.count

    def features(self) -> Tensor:
        """Return the features [N, D] in the order of the images' indices, float32 on the CPU.

        Raises:
            UserError: If an image was added twice.
        """
        if not self._features:
            return torch.empty(0, 0)
        indices = torch.cat(self._indices)
        order = indices.argsort()
        ordered = indices[order]
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise UserError(f"the image with the index {int(twice[0])} was counted twice.")
        whole = torch.cat(self._features)
        sorted_already = bool((order == torch.arange(len(order))).all())
        self._indices = [ordered]
        self._features = [whole if sorted_already else whole[order]]
        return self._features[0]

    def state(self) -> dict[str, Tensor]:
        """Return the indices and the features."""
        features = self.features()
        indices = self._indices[0] if self._indices else torch.empty(0, dtype=torch.long)
        return {"indices": indices, "features": features}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Rows":
        """Make rows from `state`."""
        found = cls()
        if len(state["indices"]):
            found.add(state["indices"], state["features"])
        return found


class SplitSums(Statistic):
    """The sums that the Inception Score needs of every split of 5,000 consecutive images.

    With p = softmax(logits) of an image: the sum of p, the sum of sum_k p_k log p_k, and the count.
    An image belongs to the split `index // 5000`, in whatever order the batches come.

    Attributes:
        splits: {split: (count, sum of p [K], sum of p log p)}, float64 on the CPU.
    """

    def __init__(self) -> None:
        self.splits: dict[int, tuple[int, Tensor, Tensor]] = {}

    def add(self, indices: Tensor, features: Tensor) -> None:
        """Add the logits [B, K] of the images `indices` [B]."""
        logs = features.detach().double().log_softmax(1).cpu()
        shares = logs.exp()
        numbers = indices.detach().long().cpu() // SPLIT
        for split in numbers.unique().tolist():
            here = numbers == split
            negative_entropy = (shares[here] * logs[here]).sum()
            self._join(split, int(here.sum()), shares[here].sum(0), negative_entropy)

    def merge(self, other: Statistic) -> None:
        """Add the images of another part of the set."""
        assert isinstance(other, SplitSums)
        for split, sums in other.splits.items():
            self._join(split, *sums)

    def _join(self, split: int, count: int, shares: Tensor, negative_entropy: Tensor) -> None:
        if split in self.splits:
            earlier = self.splits[split]
            count += earlier[0]
            self.count -= earlier[0]
            shares = shares + earlier[1]
            negative_entropy = negative_entropy + earlier[2]
        self.splits[split] = (count, shares, negative_entropy)
        self.count += count

    def state(self) -> dict[str, Tensor]:
        """Return the number of every split and its sums."""
        numbers = sorted(self.splits)
        sums = [self.splits[number] for number in numbers]
        empty = torch.empty(0, dtype=torch.float64)
        return {
            "splits": torch.tensor(numbers, dtype=torch.long),
            "counts": torch.tensor([count for count, _, _ in sums], dtype=torch.long),
            "shares": torch.stack([shares for _, shares, _ in sums]) if sums else empty,
            "entropies": torch.stack([value for _, _, value in sums]) if sums else empty,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "SplitSums":
        """Make sums from `state`."""
        found = cls()
        for i, split in enumerate(state["splits"].tolist()):
            count = int(state["counts"][i])
            found._join(split, count, state["shares"][i], state["entropies"][i])
        return found


KINDS: dict[str, type[Statistic]] = {"moments": Moments, "rows": Rows, "splits": SplitSums}
"""Statistics by the `kind` of a `Need`."""
