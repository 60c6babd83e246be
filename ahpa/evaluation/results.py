"""Finding results on the disk and sorting them by method, training seed and sampling seed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..registry import UserError, nearest
from ..registry.files import user_path
from ..registry.validation import is_integer
from .protocol import UNKNOWN, EvaluationResult, load_result


class FoundResult(NamedTuple):
    """A result, its file, and the path for which it was found."""

    path: Path
    result: EvaluationResult
    given: Path

    def known(self, key: str) -> object:
        """Return an entry of the provenance. Raises UserError if nobody recorded it."""
        value = self.result.provenance.get(key)
        if value is None or value == UNKNOWN:
            raise UserError(f"{self.path}: its provenance has no {key!r}.")
        return value

    def seed(self, key: str) -> int:
        """Return a seed of the provenance. Raises UserError if it is not an integer."""
        value = self.known(key)
        if not isinstance(value, int) or not is_integer(value):
            raise UserError(f"{self.path}: {key} must be an integer, got {value!r}.")
        return value

    @property
    def iteration(self) -> object:
        """Iteration of the checkpoint, from the provenance or the protocol; None if unknown."""
        return self.result.provenance.get("iteration", self.result.protocol.get("iteration"))


def find_results(paths: Iterable[Path | str]) -> list[FoundResult]:
    """Read results in the order of the paths, each file once.

    Args:
        paths: Result files, folders of result files, or runs (with evaluations/*.json).

    Raises:
        UserError: If a path holds no result, or a JSON file there is something else.
    """
    files: dict[Path, tuple[Path, Path]] = {}
    for given in paths:
        path = user_path(given, "results")
        if path.is_dir():
            inner = path / "evaluations"
            listed = sorted((inner if inner.is_dir() else path).glob("*.json"))
        else:
            listed = [path] if path.exists() else []
        if not listed:
            what = "holds no results" if path.is_dir() else "does not exist"
            raise UserError(
                f"results: {path} {what}; expected a run with evaluations/*.json, a folder of "
                "results or a result of `ahpa evaluate`."
            )
        for file in listed:
            files.setdefault(file.resolve(), (file, path))
    return [FoundResult(file, load_result(file), path) for file, path in files.values()]


def with_figure(name: str, found: Sequence[FoundResult], metric: str) -> list[FoundResult]:
    """Return the results of a method that have a figure. Raises UserError if none has it."""
    chosen = [item for item in found if metric in item.result.figures]
    if not chosen:
        names = {name for item in found for name in item.result.figures}
        raise UserError(
            f"--metric: no result of {name} has the figure {metric!r}{nearest(metric, names)}"
        )
    return chosen


def refuse_unused(found: Sequence[FoundResult], chosen: Sequence[FoundResult]) -> None:
    """Refuse paths of which no result was chosen. Raises UserError that names the first one."""
    used = {item.given for item in chosen}
    for item in found:
        if item.given not in used:
            raise UserError(
                f"results: nothing in {item.given} has the figure, iteration and protocol that are "
                "compared; evaluate it alike, or leave it out."
            )


def by_method(found: Sequence[FoundResult]) -> dict[str, list[FoundResult]]:
    """Sort results by the method in their provenance, in order of appearance."""
    groups: dict[str, list[FoundResult]] = {}
    for item in found:
        groups.setdefault(str(item.known("method")), []).append(item)
    return groups


def at_one_iteration(
    groups: Mapping[str, Sequence[FoundResult]], iteration: int | None
) -> dict[str, list[FoundResult]]:
    """Choose the results of one iteration.

    Args:
        groups: {method: results}.
        iteration: The iteration; None if all results have the same one.

    Raises:
        UserError: If there are several and none is chosen, or a method has none there.
    """
    present = {name: {item.iteration for item in items} for name, items in groups.items()}
    shared = set.intersection(*present.values())
    listed = ", ".join(str(value) for value in sorted(shared, key=str)) or "none"
    if iteration is None:
        if len(set.union(*present.values())) > 1:
            raise UserError(
                "--iteration: the results are of several iterations; choose one that was fixed "
                f"beforehand. All methods have: {listed}."
            )
        return {name: list(items) for name, items in groups.items()}
    for name, values in present.items():
        if iteration not in values:
            raise UserError(
                f"--iteration: {name} has no result at {iteration}. All methods have: {listed}."
            )
    return {
        name: [item for item in items if item.iteration == iteration]
        for name, items in groups.items()
    }


def figures_by_seed(
    name: str, found: Sequence[FoundResult], metric: str
) -> dict[int, dict[int, float]]:
    """Sort the figures of one method by their seeds.

    Args:
        name: Name of the method, for messages.
        found: Its results; each has the figure.
        metric: Name of the figure.

    Returns:
        {training seed: {sampling seed: value}}.

    Raises:
        UserError: If a seed is not recorded, two results have the same seeds, one training seed
            belongs to two runs, or one checkpoint to two training seeds.
    """
    seeds: dict[int, dict[int, float]] = {}
    origin: dict[tuple[int, int], FoundResult] = {}
    run_of: dict[int, FoundResult] = {}
    seed_of: dict[object, tuple[int, Path]] = {}
    for item in found:
        training, sampling = item.seed("training_seed"), item.seed("sampling_seed")
        both = f"{item.path} and {origin.get((training, sampling), item).path}"
        if (training, sampling) in origin:
            raise UserError(
                f"{name}: {both} have the same training seed {training} and sampling seed "
                f"{sampling}; leave one out."
            )
        earlier = run_of.setdefault(training, item)
        for key in ("run", "checkpoint_sha256"):
            if earlier.result.provenance.get(key) != item.result.provenance.get(key):
                raise UserError(
                    f"{name}: {earlier.path} and {item.path} have training seed {training} but "
                    f"different values of {key!r}; give one run for each training seed."
                )
        checkpoint = item.result.provenance.get("checkpoint_sha256")
        if checkpoint not in (None, UNKNOWN):
            other, path = seed_of.setdefault(checkpoint, (training, item.path))
            if other != training:
                raise UserError(
                    f"{name}: {path} and {item.path} are of one checkpoint, but their training "
                    f"seeds are {other} and {training}."
                )
        origin[training, sampling] = item
        seeds.setdefault(training, {})[sampling] = float(item.result.figures[metric])
    return seeds
