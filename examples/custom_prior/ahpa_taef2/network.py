"""TAEF2, the FLUX.2 edition of madebyollin's tiny autoencoder (MIT): 8x down, 32 latent channels.

Modules are numbered as in the published files, so that their state dicts load unchanged. Every
inner convolution has 64 channels. diffusers' AutoencoderTiny has no such pooled blocks and cannot
read these weights.
"""

import torch
from torch import Tensor, nn

LATENT = 32  # channels of the latent
WIDTH = 64  # channels of everything else
POOLED = 256  # channels inside a pooled block
GROUPS = 4  # of the norm in a pooled block

# The encoder's levels, shallow -> deep, and their pixels per feature: level i is the output of
# module i. The last module, the convolution to the latent, is not a level.
LEVELS = {"conv_in": 1, "stage0.block0": 1} | {
    f"stage{stage}.{part}": 2**stage
    for stage in (1, 2, 3)
    for part in ("down", "block0", "block1", "block2")
}


class Block(nn.Module):
    """Three convolutions with ReLUs between, plus the input, then ReLU.

    Args:
        pooled: Whether x + pool(x) comes first, as at the coarsest resolution.
    """

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            same(WIDTH, WIDTH), nn.ReLU(), same(WIDTH, WIDTH), nn.ReLU(), same(WIDTH, WIDTH)
        )
        self.pool: nn.Module | None = None
        if pooled:
            widen = nn.Conv2d(WIDTH, POOLED, 1, bias=False)
            narrow = nn.Conv2d(POOLED, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(widen, nn.GroupNorm(GROUPS, POOLED), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 64, h, w] to the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """3 tanh(x / 3), which keeps extreme latents in range."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to the same shape."""
        return 3 * torch.tanh(x / 3)


def same(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def down(*, pooled: bool = False) -> list[nn.Module]:
    """Return a stage of the encoder: half the size, then three blocks."""
    halve = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)
    return [halve, *(Block(pooled=pooled) for _ in range(3))]


def up(*, pooled: bool = False) -> list[nn.Module]:
    """Return a stage of the decoder: three blocks, then twice the size."""
    double = nn.Upsample(scale_factor=2, mode="nearest")
    smooth = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
    return [*(Block(pooled=pooled) for _ in range(3)), double, smooth]


def encoder() -> nn.Sequential:
    """Return the encoder: images [B, 3, H, W] in [0, 1] -> raw latents [B, 32, H/8, W/8]."""
    stages = [*down(), *down(), *down(pooled=True)]
    return nn.Sequential(same(3, WIDTH), Block(), *stages, same(WIDTH, LATENT))


def decoder() -> nn.Sequential:
    """Return the decoder: raw latents [B, 32, h, w] -> images [B, 3, 8h, 8w], about [0, 1]."""
    first = [Clamp(), same(LATENT, WIDTH), nn.ReLU()]
    stages = [*up(pooled=True), *up(), *up()]
    return nn.Sequential(*first, *stages, Block(), same(WIDTH, 3))
