"""`Plaids`: gradients, gratings and plaids, drawn on the fly."""

import math
from typing import Any

import torch
from torch import Tensor

from ahpa.registry import DATASETS
from ahpa.registry.contracts import Dataset
from ahpa.registry.seeds import mix_seed
from ahpa.registry.validation import integer, positive_int

CLASSES = ("gradient", "grating", "plaid", "rings")


def draw(kind: str, side: int, rng: torch.Generator) -> Tensor:
    """Draw a pattern of random colours, direction, phase and frequency.

    Args:
        kind: One of `CLASSES`.
        side: Pixels of a side.
        rng: The only source of randomness.

    Returns:
        [3, side, side] float32 in [0, 1].
    """
    first, second = torch.rand(2, 3, 1, 1, generator=rng)
    direction, start, frequency = torch.rand(3, generator=rng).tolist()
    angle = 2 * math.pi * direction
    phase = 2 * math.pi * start
    rate = 2 * math.pi * (2 + 4 * frequency)  # 2 to 6 waves on a side
    axis = (torch.arange(side) + 0.5) / side - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    wave = torch.sin(rate * along + phase)
    if kind == "gradient":
        share = 0.5 + along / math.sqrt(2)
    elif kind == "grating":
        share = 0.5 + wave / 2
    elif kind == "plaid":
        other = torch.sin(rate * across + phase)
        share = 0.5 + (wave + other) / 4
    else:
        radius = torch.hypot(x, y)
        share = 0.5 + torch.sin(rate * radius + phase) / 2
    return first * share + second * (1 - share)


@DATASETS.register_module()
class Plaids(Dataset):
    """Gradients, gratings, plaids and rings; the class is the index modulo 4.

    A picture is a function of (seed, index, epoch): the same index shows another picture of its
    class in each epoch, and a resumed run sees what the uninterrupted one would have seen.

    Args:
        resolution: Pixels of a side; passed by ahpa.
        length: Number of pictures in an epoch.
        seed: Seed of the pictures.
    """

    classes = CLASSES

    def __init__(self, *, resolution: int, length: int = 100_000, seed: int = 0) -> None:
        self.resolution = positive_int("resolution", resolution)
        self.length = positive_int("length", length)
        self.seed = integer("seed", seed)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return dict(image, label, index) for an index or (index, epoch)."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < self.length:
            raise IndexError(f"picture {index} is not in 0..{self.length - 1}")
        label = index % len(CLASSES)
        rng = torch.Generator().manual_seed(mix_seed(self.seed, index, epoch))
        picture = draw(CLASSES[label], self.resolution, rng)
        image = (picture * 255).round().to(torch.uint8)
        return {"image": image, "label": label, "index": index}

    def sample_id(self, index: int) -> str:
        """Return the class and the number of a picture."""
        return f"{CLASSES[index % len(CLASSES)]} {index}"
