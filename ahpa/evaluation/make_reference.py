"""Writes a reference .npz in ADM's format from any set of images."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..registry.contracts import Need
from ..registry.validation import positive_int
from .collect import collect
from .extractors import extractor_key
from .images import Batch, ImageSet, write_npz
from .reference import COUNT, STORED
from .statistics import Moments

INCEPTION: Mapping[str, Any] = {"type": "inception"}


def make_reference(
    images: ImageSet,
    out: Path,
    *,
    device: torch.device | str,
    batch: int = 32,
    kept: int = 10_000,
    seed: int = 0,
    extractor: Mapping[str, Any] | None = INCEPTION,
) -> None:
    """Write a reference .npz as ADM's: moments of all images, and some of the images.

    Args:
        images: The set; all of it is read once, and the images that are kept once more.
        out: The .npz; it is complete or absent.
        device: Where the network runs.
        batch: Images at once.
        kept: Number of images in arr_0, drawn without repeats; all of a smaller set.
        seed: Seed of the draw.
        extractor: Config of Inception; None to write arr_0 alone, for other extractors.

    Raises:
        UserError: If weights are missing, an image cannot be read, or the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    if extractor is not None:
        key = extractor_key(extractor)
        needs = {output: Need(key, output, "moments") for output in STORED}
        with tqdm(total=len(images), unit="image", leave=False, disable=None) as bar:
            found = collect(watched(images.batches(batch), bar), needs.values(), device=device)
        for output, (mean_name, covariance_name, _) in STORED.items():
            moments = found[needs[output]]
            assert isinstance(moments, Moments) and moments.mean is not None
            arrays[mean_name] = moments.mean.cpu().numpy()
            arrays[covariance_name] = moments.covariance.cpu().numpy()
        arrays[COUNT] = np.array(len(images))
    number = min(positive_int("num", kept), len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:number].tolist())
    pixels = (part.images for part in images.batches(batch, indices=chosen))
    write_npz(out, pixels, count=number, size=images.size, arrays=arrays)


def watched(batches: Iterable[Batch], bar: tqdm) -> Iterator[Batch]:
    """Yield batches and move a progress bar on by their images."""
    for batch in batches:
        yield batch
        bar.update(len(batch.indices))
