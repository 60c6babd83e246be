"""From images to figures: one pass over the images gathers all statistics that metrics need."""

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ..registry import EXTRACTORS, UserError, build
from ..registry.contracts import FeatureExtractor, Metric, Need
from .images import Batch, ImageSet
from .reference import Reference
from .statistics import KINDS, Statistic

logger = logging.getLogger("ahpa")

Extractors = dict[str, FeatureExtractor]
"""Loaded feature extractors by `Need.extractor`."""


class Group(Protocol):
    """The processes that share the work; `ahpa.engine.distributed.Processes` is one."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """Return a picklable value of every process, in the order of the ranks."""


def load_extractors(needs: Iterable[Need], device: torch.device) -> Extractors:
    """Build and load every extractor that is needed, once.

    Raises:
        UserError: If weights are missing.
    """
    found: Extractors = {}
    for need in needs:
        if need.extractor not in found:
            extractor: FeatureExtractor = build(EXTRACTORS, json.loads(need.extractor))
            extractor.to(device)
            extractor.load()
            found[need.extractor] = extractor.eval()
    return found


def exact_convolutions() -> AbstractContextManager:
    """Return a context in which CUDA's convolutions compute in whole float32: by default they round
    to TF32, and features differ between machines."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


@torch.no_grad()
def collect(
    batches: Iterable[Batch],
    needs: Iterable[Need],
    *,
    device: torch.device | str,
    extractors: Extractors | None = None,
) -> dict[Need, Statistic]:
    """Gather statistics in one pass over images; each extractor sees every image once.

    Args:
        batches: The images of this process.
        needs: What is needed.
        device: Where the extractors run.
        extractors: Loaded extractors; loaded here by default.

    Returns:
        {need: statistic} of this process's images.

    Raises:
        UserError: If weights or prompts are missing, or a feature is not finite.
    """
    place = torch.device(device)
    wanted = list(dict.fromkeys(needs))
    loaded = load_extractors(wanted, place) if extractors is None else extractors
    found: dict[Need, Statistic] = {need: KINDS[need.kind]() for need in wanted}
    by_extractor: dict[str, list[Need]] = {}
    for need in wanted:
        by_extractor.setdefault(need.extractor, []).append(need)
    for batch in batches:
        images = batch.images.to(place)
        for key, group in by_extractor.items():
            extractor = loaded[key]
            if extractor.takes_prompts and batch.prompts is None:
                raise UserError(
                    "a metric compares images with their prompts, but the images have none; give "
                    "a file with one prompt a line."
                )
            with exact_convolutions():
                outputs = extractor(images, batch.prompts if extractor.takes_prompts else None)
            for need in group:
                features = outputs[need.output]
                if not features.isfinite().all():
                    name = json.loads(key)["type"]
                    raise UserError(
                        f"{name}: the features of the images from index {int(batch.indices[0])} "
                        "on hold values that are not finite."
                    )
                found[need].add(batch.indices, features)
    return found


def gathered(own: Mapping[Need, Statistic], processes: Group | None) -> dict[Need, Statistic]:
    """Merge the statistics of all processes; every process gets the whole."""
    if processes is None:
        return dict(own)
    whole: dict[Need, Statistic] = {}
    for need, statistic in own.items():
        merged = type(statistic)()
        for state in processes.gather(statistic.state()):
            merged.merge(type(statistic).from_state(state))
        if need.kind == "rows":
            merged.device = statistic.device  # type: ignore[attr-defined]
        whole[need] = merged
    return whole


def collect_together(
    images: ImageSet | Iterable[Batch],
    needs: Iterable[Need],
    *,
    device: torch.device,
    batch: int,
    extractors: Extractors,
    processes: Group | None,
) -> dict[Need, Statistic]:
    """Gather statistics over all processes. An error of one process is raised by each.

    Args:
        images: A stored set, of which each process reads its share; or this process's batches.
        needs: What is needed.
        device: Where the extractors run.
        batch: Images at once, of a stored set.
        extractors: Loaded extractors.
        processes: The processes that share the work; None for one.
    """
    place = (0, 1) if processes is None else (processes.rank, processes.world)
    if isinstance(images, ImageSet):
        images = images.batches(batch, rank=place[0], world=place[1])
    own: dict[Need, Statistic] = {}
    mistake: UserError | None = None
    try:
        own = collect(images, needs, device=device, extractors=extractors)
    except UserError as error:
        mistake = error
    except Exception as error:  # the other processes must not wait for this one
        if processes is None:
            raise
        logger.exception("process %d cannot compute features", place[0])
        mistake = UserError(f"process {place[0]}: {type(error).__name__}: {error}")
    mistakes = [mistake] if processes is None else processes.gather(mistake)
    first = next((error for error in mistakes if error is not None), None)
    if first is not None:
        raise first
    return gathered(own, processes)


def evaluate_images(
    images: ImageSet | Iterable[Batch],
    reference: Reference | None,
    metrics: Mapping[str, Metric],
    *,
    device: torch.device | str,
    batch: int = 32,
    processes: Group | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compute the figures of a set of images.

    Args:
        images: A stored set, of which each process reads its share; or the batches of this process,
            such as a sampler draws them.
        reference: What they are compared with; None if no metric needs one.
        metrics: {name: metric} of `build_metrics`.
        device: Where the extractors run.
        batch: Images at once, of a stored set and of the reference.
        processes: The processes that share the work, such as `Processes` of ahpa.engine; None for
            this one alone.

    Returns:
        {figure: value}, and what the protocol of an evaluation records: the number of images, each
        metric's options and features, and the reference.

    Raises:
        UserError: If weights, prompts or the reference are missing, an image cannot be read, or
            there are too few images.
    """
    place = torch.device(device)
    needs = [need for metric in metrics.values() for need in metric.needs]
    compared = [need for metric in metrics.values() for need in metric.reference_needs]
    if compared and reference is None:
        named = ", ".join(name for name, metric in metrics.items() if metric.reference_needs)
        raise UserError(f"{named} compare with a reference; give one (an .npz, a folder, a .zip).")
    extractors = load_extractors([*needs, *compared], place)
    options: dict[str, Any] = dict(batch=batch, extractors=extractors, processes=processes)
    known: dict[Need, Statistic] = {}
    if reference is not None:
        known = reference.stored(compared)
        missing = [need for need in dict.fromkeys(compared) if need not in known]
        if missing:
            known |= collect_together(reference.images, missing, device=place, **options)
    found = collect_together(images, needs, device=place, **options)
    figures = compute_once(metrics, found, known, processes)
    record = {
        "images": max((statistic.count for statistic in found.values()), default=0),
        "metrics": {
            name: {**metric.identity(), "features": features_of(metric, extractors)}
            for name, metric in metrics.items()
        },
        "reference": None if reference is None else reference.identity(),
    }
    return figures, record


def compute_once(
    metrics: Mapping[str, Metric],
    samples: Mapping[Need, Statistic],
    reference: Mapping[Need, Statistic],
    processes: Group | None,
) -> dict[str, float]:
    """Compute all figures on the first process; every process gets them, or its error."""
    found: dict[str, float] | UserError = {}
    if processes is None or processes.rank == 0:
        try:
            figures: dict[str, float] = {}
            for metric in metrics.values():
                figures |= metric.compute(samples, reference)
            found = figures
        except UserError as error:
            found = error
    if processes is not None:
        found = processes.gather(found)[0]
    if isinstance(found, UserError):
        raise found
    return found


def features_of(metric: Metric, extractors: Extractors) -> list[dict[str, Any]]:
    """Describe the features that a metric compares, for the protocol."""
    return [
        {"output": need.output, "extractor": extractors[need.extractor].identity()}
        for need in metric.needs
    ]
