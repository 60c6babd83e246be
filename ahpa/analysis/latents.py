"""Statistics of an autoencoder's raw latents over a data set, for `model.tokenizer`."""

import json
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..registry.contracts import Tokenizer

SIGNIFICANT = 5  # digits that are written


class LatentMoments(NamedTuple):
    """Mean and standard deviation of each channel of sampled latents.

    Attributes:
        mean: [C] float64.
        std: [C] float64; its square is the variance of the posteriors' means plus the mean of
            their variances, which is the variance of samples.
        images: Number of images.
    """

    mean: Tensor
    std: Tensor
    images: int

    def config(self, about: str) -> str:
        """Return a base config whose `_latents` is merged into `model`.

        Args:
            about: What was measured.
        """
        mean, std = rounded(self.mean), rounded(self.std)
        factors = f"statistics=None, scale=None, shift=None, mean={mean}, std={std}"
        title = f"Statistics of raw latents: {about}."
        return f"{json.dumps(title)}\n\n_latents = dict(tokenizer=dict({factors}))\n"


def rounded(values: Tensor) -> list[float]:
    """Return numbers with a few significant digits."""
    return [float(f"{value:.{SIGNIFICANT}g}") for value in values.tolist()]


@torch.no_grad()
def latent_moments(tokenizer: Tokenizer, batches: Iterable[Tensor], total: int) -> LatentMoments:
    """Measure the latents of images, in one pass and float64.

    Args:
        tokenizer: The autoencoder, on the device of the batches; its latents are measured as it
            gives them, so raw ones need `mean` 0 and `std` 1.
        batches: Images [B, 3, H, W] in [0, 1].
        total: Number of images, for the progress bar.

    Raises:
        ValueError: If there are no images.
    """
    count, images = 0, 0
    first = torch.zeros(tokenizer.latent_channels, dtype=torch.float64)
    second = torch.zeros_like(first)
    with tqdm(total=total, unit="image", leave=False, disable=None) as bar:
        for batch in batches:
            encoded = tokenizer.encode(batch)
            assert encoded.mean is not None and encoded.std is not None
            mean, std = encoded.mean.double().cpu(), encoded.std.double().cpu()
            first += mean.sum((0, 2, 3))
            second += (mean.square() + std.square()).sum((0, 2, 3))
            count += mean[:, 0].numel()
            images += len(batch)
            bar.update(len(batch))
    if not images:
        raise ValueError("there are no images to measure.")
    average = first / count
    return LatentMoments(average, (second / count - average.square()).sqrt(), images)
