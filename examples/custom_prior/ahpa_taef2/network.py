"""TAEF2, the FLUX.2 edition of madebyollin's tiny autoencoder (MIT): 8x down, 32 latent channels, images in [0, 1].

Modules are numbered as in the published files. B batch, 64 channels everywhere between the ends.
"""

import torch
from torch import Tensor, nn

WIDTH, POOLED, GROUPS = 64, 256, 4


class Block(nn.Module):
    """conv-ReLU-conv-ReLU-conv plus the input, then ReLU; in the coarsest stage x + pool(x) comes first."""

    def __init__(self, *, pooled: bool = False):
        super().__init__()
        conv = lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1)  # noqa: E731
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        self.pool = nn.Sequential(
            nn.Conv2d(WIDTH, POOLED, 1, bias=False), nn.GroupNorm(GROUPS, POOLED), nn.ReLU(),
            nn.Conv2d(POOLED, WIDTH, 1, bias=False)) if pooled else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """3 tanh(x / 3): keeps wild latents in range."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def down() -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)


def up() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]


def encoder(latent_channels: int = 32) -> nn.Sequential:
    """Images [B, 3, H, W] in [0, 1] -> raw latents [B, 32, H/8, W/8]."""
    stages = [down(), Block(), Block(), Block(), down(), Block(), Block(), Block()]
    last = [down(), *(Block(pooled=True) for _ in range(3))]
    ends = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, latent_channels, 3, padding=1)
    return nn.Sequential(ends[0], Block(), *stages, *last, ends[1])


def decoder(latent_channels: int = 32) -> nn.Sequential:
    """Raw latents [B, 32, h, w] -> images [B, 3, 8h, 8w], about [0, 1]."""
    first = [Clamp(), nn.Conv2d(latent_channels, WIDTH, 3, padding=1), nn.ReLU()]
    stages = [
        *(Block(pooled=True) for _ in range(3)),
        *up(),
        Block(),
        Block(),
        Block(),
        *up(),
        Block(),
        Block(),
        Block(),
    ]
    return nn.Sequential(*first, *stages, *up(), Block(), nn.Conv2d(WIDTH, 3, 3, padding=1))


# The encoder's levels, shallow -> deep: module number -> name. Strides 1, 2, 4, 8.
LEVELS = ["conv_in", "stage0.block0"] + [
    f"stage{stage}.{part}" for stage in (1, 2, 3) for part in ("down", "block0", "block1", "block2")
]
