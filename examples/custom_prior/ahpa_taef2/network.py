"""TAEF2, the FLUX.2 edition of madebyollin's tiny autoencoder (MIT): 8x down, 32 latent channels, images in [0, 1].

Modules are numbered as in the published files, so that their state dicts load as they are. B batch; every inner
convolution has 64 channels. diffusers' AutoencoderTiny has no such pooled blocks and cannot read these weights.
"""

import torch
from torch import Tensor, nn

LATENT, WIDTH = 32, 64
POOLED, GROUPS = 256, 4  # of the pooled blocks
# The encoder's levels, shallow -> deep: the output of module i is level i; pixels per feature. The last module (the
# convolution to the latent) is none.
LEVELS = {"conv_in": 1, "stage0.block0": 1} | {
    f"stage{stage}.{part}": 2**stage for stage in (1, 2, 3) for part in ("down", "block0", "block1", "block2")
}


class Block(nn.Module):
    """conv-ReLU-conv-ReLU-conv plus the input, then ReLU; at the coarsest resolution x + pool(x) comes first."""

    def __init__(self, *, pooled: bool = False):
        super().__init__()
        self.conv = nn.Sequential(same(WIDTH, WIDTH), nn.ReLU(), same(WIDTH, WIDTH), nn.ReLU(), same(WIDTH, WIDTH))
        self.pool = None
        if pooled:
            wide, narrow = nn.Conv2d(WIDTH, POOLED, 1, bias=False), nn.Conv2d(POOLED, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(wide, nn.GroupNorm(GROUPS, POOLED), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:  # [B, 64, h, w] -> the same
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """3 tanh(x / 3): keeps wild latents in range."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def same(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def down(*, pooled: bool = False) -> list[nn.Module]:
    """A stage of the encoder: half the size, then three blocks."""
    return [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), *(Block(pooled=pooled) for _ in range(3))]


def up(*, pooled: bool = False) -> list[nn.Module]:
    """A stage of the decoder: three blocks, then twice the size."""
    double = [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]
    return [*(Block(pooled=pooled) for _ in range(3)), *double]


def encoder() -> nn.Sequential:
    """Images [B, 3, H, W] in [0, 1] -> raw latents [B, 32, H/8, W/8]."""
    return nn.Sequential(same(3, WIDTH), Block(), *down(), *down(), *down(pooled=True), same(WIDTH, LATENT))


def decoder() -> nn.Sequential:
    """Raw latents [B, 32, h, w] -> images [B, 3, 8h, 8w], about [0, 1]."""
    first = [Clamp(), same(LATENT, WIDTH), nn.ReLU()]
    return nn.Sequential(*first, *up(pooled=True), *up(), *up(), Block(), same(WIDTH, 3))
