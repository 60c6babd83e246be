"""From samples to a result: figures with the record of how they came about."""

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.distributed import Processes
from ..evaluation.collect import collect_together, evaluate_images, load_extractors
from ..evaluation.images import Batch, ImageSet
from ..evaluation.protocol import UNKNOWN, EvaluationResult
from ..evaluation.reference import STORED, Reference
from ..evaluation.statistics import Statistic
from ..registry import DATASETS, UserError, build
from ..registry.contracts import Dataset, Metric, Need
from ..registry.errors import UnreadableSample, printable
from .provenance import here

TRAIN = "train"
"""Name of the reference that is made from a run's own training data."""

SAMPLING_KEYS = (
    "sampler",
    "steps",
    "evaluations",
    "times",
    "guidance",
    "latents",
    "decoder",
    "resolution",
    "classes",
    "tile",
    "uint8",
    "precision",
    "weights",
    "ema_decay",
    "iteration",
)
"""Keys of a protocol beside those of `evaluate_images`: images, metrics and reference."""


def unknown_protocol(images: ImageSet) -> dict[str, Any]:
    """Return the protocol of images of which nobody recorded how they were drawn."""
    return {**dict.fromkeys(SAMPLING_KEYS, UNKNOWN), "resolution": images.size[0]}


def evaluate(
    images: ImageSet | Iterable[Batch],
    reference: Reference | None,
    metrics: Mapping[str, Metric],
    *,
    protocol: Mapping[str, Any],
    provenance: Mapping[str, Any],
    device: torch.device,
    batch: int,
    processes: Processes | None = None,
) -> EvaluationResult:
    """Compute the figures of a set of images, and record how they came about.

    Args:
        images: A stored set, of which each process reads its share; or this process's batches.
        reference: What they are compared with; None if no metric needs one.
        metrics: {name: metric} of `build_metrics`.
        protocol: How the images were drawn, with the keys `SAMPLING_KEYS`.
        provenance: Where they come from.
        device: Where the extractors run.
        batch: Images at once.
        processes: The processes that share the work; None for this one alone.

    Raises:
        UserError: If weights, prompts or the reference are missing, an image cannot be read, or
            there are too few images.
    """
    figures, record = evaluate_images(
        images, reference, metrics, device=device, batch=batch, processes=processes
    )
    return EvaluationResult(figures, {**protocol, **record}, {**provenance, **here(device)})


def check_weights(metrics: Mapping[str, Metric], device: torch.device) -> None:
    """Load what the metrics need once, so that missing weights are found before samples are drawn.

    Raises:
        UserError: If weights are missing.
    """
    needs = [(*metric.needs, *metric.reference_needs) for metric in metrics.values()]
    load_extractors(itertools.chain(*needs), device)


def check_reference(reference: Reference, metrics: Mapping[str, Metric]) -> None:
    """Check that a reference holds what the metrics need. Raises UserError."""
    needs = [need for metric in metrics.values() for need in metric.reference_needs]
    stored = reference.stored(needs)
    if any(need not in stored for need in needs):
        assert reference.images is not None  # raises if there are none


# ---- a run's own training data as the reference -----------------------------------------------


class DatasetImages(ImageSet):
    """Images of a data set, spread evenly over it.

    Args:
        dataset: The data set.
        most: Largest number of images.
        name: What it is, for messages.
    """

    def __init__(self, dataset: Dataset, *, most: int, name: str) -> None:
        self.dataset = dataset
        count = min(len(dataset), most)
        self.chosen = [number * len(dataset) // count for number in range(count)]
        height, width = dataset[self.chosen[0]]["image"].shape[-2:]
        super().__init__(Path(name), count=count, size=(height, width))

    def compute_sha256(self) -> str:
        """Return the SHA-256 of the images."""
        found = hashlib.sha256()
        for image in self.read(range(len(self))):
            found.update(np.ascontiguousarray(image).tobytes())
        return found.hexdigest()

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the images. Raises UserError for one that cannot be read: none replaces it."""
        for index in indices:
            chosen = self.chosen[index]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnreadableSample)
                item = self.dataset[chosen]
            problems = self.dataset.take_problems()
            if chosen in problems:
                name = printable(self.dataset.sample_id(chosen))
                raise UserError(f"reference: {name} cannot be read ({problems[chosen]}).")
            yield item["image"].numpy().transpose(1, 2, 0)


class TrainingReference(Reference):
    """The training data of a run as a reference, without flips.

    Args:
        config: The run's config.
        most: Largest number of images; they are spread evenly over the data set.

    Raises:
        UserError: If the data set is not there.
    """

    def __init__(self, config: Mapping[str, Any], *, most: int) -> None:
        loader = config.get("train_dataloader")
        if not isinstance(loader, Mapping) or not isinstance(loader.get("dataset"), Mapping):
            raise UserError(
                "reference: the config of this model does not name its training data; give an "
                ".npz or a folder."
            )
        section = dict(loader["dataset"])
        if "flip" in section:
            section["flip"] = False
        side = config["model"].get("resolution", 256)
        dataset = build(DATASETS, section, where="train_dataloader.dataset", resolution=side)
        self.path = Path(TRAIN)
        self.resolution = side
        self.names = []
        self._images = DatasetImages(dataset, most=most, name="the training data")
        self.moments = dict.fromkeys(STORED)
        self._sha256 = None
        self._known: dict[Need, Statistic] = {}

    def gather(
        self,
        metrics: Mapping[str, Metric],
        *,
        device: torch.device,
        batch: int,
        processes: Processes | None,
    ) -> None:
        """Compute and keep what metrics need of the images, so that several evaluations share it.

        Raises:
            UserError: If weights are missing or an image cannot be read.
        """
        needs = [need for metric in metrics.values() for need in metric.reference_needs]
        missing = [need for need in dict.fromkeys(needs) if need not in self._known]
        if missing:
            self._known |= collect_together(
                self.images,
                missing,
                device=device,
                batch=batch,
                extractors=load_extractors(missing, device),
                processes=processes,
            )

    def stored(self, needs: Iterable[Need]) -> dict[Need, Statistic]:
        """Return the statistics that `gather` has kept."""
        return {need: self._known[need] for need in needs if need in self._known}

    def identity(self) -> dict[str, Any]:
        """Return what the protocol of an evaluation records."""
        return {**super().identity(), "stored": []}
