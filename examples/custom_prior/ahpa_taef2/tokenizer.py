"""`TAEF2`, a latent tokenizer for ahpa: the network of network.py with standardised latents.

What ahpa expects of a tokenizer is in `ahpa.registry.contracts.Tokenizer`.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ahpa.registry import TOKENIZERS, ConfigError, UserError
from ahpa.registry.contracts import Encoded, LevelSpec, Tokenizer
from ahpa.registry.precision import dtype_of, full_precision
from ahpa.registry.validation import choice, number, positive
from ahpa.registry.weight_files import read_state_dict

from . import network

# Mean and standard deviation of each raw latent channel over the 1,000 images of an ImageNet sample
# (one a class, centre crop to 256 px), all 32 x 32 places of each; float32 on a CPU.
# fmt: off
MEAN = (
    0.016, -0.028, -0.073, 0.032, 0.055, 0.044, -0.052, 0.024,
    -0.014, 0.061, 0.079, -0.033, 0.055, 0.093, -0.03, 0.031,
    0.009, 0.124, -0.018, 0.026, -0.045, 0.049, 0.072, -0.054,
    0.031, -0.048, 0.055, -0.005, 0.087, 0.082, -0.035, 0.02,
)
STD = (
    0.731, 0.964, 0.938, 0.994, 0.732, 0.948, 0.966, 0.791,
    0.983, 0.643, 0.638, 0.962, 0.72, 0.7, 0.903, 0.995,
    0.773, 0.7, 0.735, 1.002, 0.752, 0.662, 0.766, 0.689,
    0.94, 0.736, 0.96, 0.869, 0.752, 0.956, 0.768, 0.964,
)
# fmt: on
DECODE_BATCH = 16  # images decoded at once

Statistics = float | Sequence[float]


@TOKENIZERS.register_module()
class TAEF2(Tokenizer):
    """The TAEF2 tiny autoencoder as latent tokenizer: 8x down, 32 channels, deterministic.

    Latents are (raw - mean) / std.

    Args:
        encoder: Path of taef2_encoder.safetensors.
        decoder: Path of taef2_decoder.safetensors. Without it there are latents and levels but no
            pictures; set `hooks.samples=None` then.
        mean: One number, or one for each channel; by default measured on ImageNet.
        std: As `mean`.
        precision: "fp32", "bf16" or "fp16", of weights and computation.

    Raises:
        ConfigError: If an option is not valid.
    """

    latent_channels = network.LATENT
    downsample = 8
    levels = {name: LevelSpec(network.WIDTH, stride) for name, stride in network.LEVELS.items()}

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        encoder: str,
        decoder: str | None = None,
        mean: Statistics = MEAN,
        std: Statistics = STD,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.encoder_path = check_path("encoder", encoder)
        self.decoder_path = None if decoder is None else check_path("decoder", decoder)
        self.dtype = dtype_of("precision", precision)
        means = [number("mean", value) for value in per_channel("mean", mean)]
        stds = [positive("std", value) for value in per_channel("std", std)]
        # Buffers follow `.to(device)`. The networks become submodules when they are loaded.
        self.register_buffer("mean", torch.tensor(means).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(1, -1, 1, 1), persistent=False)
        self.encoder: Any = None
        self.decoder: Any = None

    def load(self) -> None:
        """Read the files that were given, so that a wrong path shows when training starts."""
        if self.encoder is None:
            self.encoder = self._read("encoder", self.encoder_path, network.encoder())
        if self.decoder is None and self.decoder_path is not None:
            self.decoder = self._read("decoder", self.decoder_path, network.decoder())

    def _read(self, name: str, path: str, net: nn.Sequential) -> nn.Sequential:
        """Return a network with the weights of its file, frozen."""
        state = read_state_dict(path, f"TAEF2, option {name!r}")
        try:
            net.load_state_dict(state)
        except RuntimeError as error:  # other names or shapes
            raise UserError(
                f"TAEF2: {path} does not hold the weights of TAEF2's {name}: its keys differ."
            ) from error
        net.to(device=self.mean.device, dtype=self.dtype)
        return net.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Tensor, levels: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """Encode images [B, 3, H, W] in [0, 1].

        Returns:
            The latent [B, 32, H/8, W/8] as the mean, a std of 0, and the levels, shallow -> deep.
            Without `latent` it stops at the deepest level.

        Raises:
            ValueError: If the images do not fit.
            ConfigError: If a level is unknown.
        """
        for name in levels:
            choice("TAEF2: level", name, tuple(self.levels))
        check_images(images, self.downsample)
        self.load()
        *body, last = self.encoder
        found = {}
        x = images.to(dtype=last.weight.dtype)
        with full_precision(x.device):
            for name, module in zip(self.levels, body, strict=True):
                x = module(x)
                if name in levels:
                    found[name] = x
                if not latent and len(found) == len(set(levels)):
                    return Encoded(None, None, found)
            mean = (last(x).float() - self.mean) / self.std
        return Encoded(mean, torch.zeros_like(mean), found)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents [B, 32, h, w] to images [B, 3, 8h, 8w] float32 in [0, 1].

        Raises:
            ValueError: If the latents do not fit.
            UserError: If no decoder was given.
        """
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(f"latent: must be [B, 32, h, w], got {list(latent.shape)}.")
        self.load()
        if self.decoder is None:
            raise UserError(
                "TAEF2: to decode, set the option 'decoder' to taef2_decoder.safetensors."
            )
        raw = (latent.float() * self.std + self.mean).to(self.decoder[-1].weight.dtype)
        with full_precision(raw.device):
            parts = [self.decoder(part).float() for part in raw.split(DECODE_BATCH)]
        return torch.cat(parts).clamp(0, 1)


def check_path(name: str, path: Any) -> str:
    """Return a path. Raises ConfigError for anything else."""
    if isinstance(path, (str, os.PathLike)):
        return str(path)
    raise ConfigError(f"{name}: must be the path of a safetensors file, got {path!r}.")


def per_channel(name: str, values: Statistics) -> list[float]:
    """Return one number, or one for each channel. Raises ConfigError for another count."""
    numbers: list[Any] = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(numbers) not in (1, network.LATENT):
        raise ConfigError(f"{name}: must be 1 or {network.LATENT} numbers, got {len(numbers)}.")
    return numbers


def check_images(images: Tensor, multiple: int) -> None:
    """Raise ValueError unless images are floats [B, 3, H, W] of sides that are multiples."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        given = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images: must be floats in [0, 1] [B, 3, H, W], got {given}.")
    sides = list(images.shape[2:])
    if any(side % multiple for side in sides):
        raise ValueError(f"images: sides must be multiples of {multiple}, got {sides}.")
