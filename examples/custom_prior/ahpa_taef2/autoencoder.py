"""`TAEF2`, a latent tokenizer for ahpa: the network of network.py, frozen, its latents standardised per channel.

What ahpa asks of an autoencoder stands in `ahpa.registry.contracts.Autoencoder`: sizes known without weights, `load`,
`encode` (latents and levels of one pass), `decode`.
"""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ahpa.registry import AUTOENCODERS, ConfigError, UserError, nearest
from ahpa.registry.contracts import Autoencoder, Encoded, LevelSpec

from . import network

# Mean and standard deviation of each raw latent channel over the 1,000 images of an ImageNet sample (one a class, centre
# crop to 256 px), all 32 x 32 places of each; float32 on a CPU.
MEAN = (
    0.016, -0.028, -0.073, 0.032, 0.055, 0.044, -0.052, 0.024, -0.014, 0.061, 0.079, -0.033, 0.055, 0.093, -0.03, 0.031,
    0.009, 0.124, -0.018, 0.026, -0.045, 0.049, 0.072, -0.054, 0.031, -0.048, 0.055, -0.005, 0.087, 0.082, -0.035, 0.02,
)  # fmt: skip
STD = (
    0.731, 0.964, 0.938, 0.994, 0.732, 0.948, 0.966, 0.791, 0.983, 0.643, 0.638, 0.962, 0.72, 0.7, 0.903, 0.995,
    0.773, 0.7, 0.735, 1.002, 0.752, 0.662, 0.766, 0.689, 0.94, 0.736, 0.96, 0.869, 0.752, 0.956, 0.768, 0.964,
)  # fmt: skip
DECODE_BATCH = 16  # images decoded at once


def per_channel(name: str, values, *, positive: bool = False) -> Tensor:
    """A number, or one a channel -> [1, 1 or 32, 1, 1] float32 on the CPU. ConfigError for anything else."""
    numbers = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(numbers) not in (1, network.LATENT):
        raise ConfigError(f"{name}: expected 1 or {network.LATENT} numbers, got {len(numbers)}.")
    for number in numbers:
        valid = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if not valid or (positive and number <= 0):
            raise ConfigError(f"{name}: expected finite numbers{' above 0' * positive}, got {number!r}.")
    return torch.tensor(numbers, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)


def read(net: nn.Sequential, path, what: str) -> nn.Sequential:
    """`net` with the weights of a safetensors file, in float32. UserError with what was looked for, and where."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path is None:
        raise UserError(f"TAEF2: the {what} is needed here and no path was given; set the option {what!r}.")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UserError(f"TAEF2: there is no {what} at {file}; set the option {what!r} to a taef2_{what}.safetensors.")
    try:
        net.load_state_dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"TAEF2: {file} is no safetensors file that can be read ({error}).") from error
    except RuntimeError as error:  # from load_state_dict: other keys or shapes
        raise UserError(f"TAEF2: {file} does not hold the weights of TAEF2's {what}: its keys differ.") from error
    return net


@AUTOENCODERS.register_module()
class TAEF2(Autoencoder):
    """The TAEF2 tiny autoencoder as latent tokenizer: 8x down, 32 channels, deterministic.

    encoder, decoder: paths of the safetensors files; without a decoder there are latents and levels but no pictures
    (set `hooks.samples=None` then). Latents are (raw - mean) / std; mean, std: a number or one a channel, by default
    the constants above. Raises UserError where a file is missing or another one, ConfigError for numbers that do not fit.
    """

    latent_channels, downsample = network.LATENT, 8
    levels = {name: LevelSpec(network.WIDTH, stride) for name, stride in network.LEVELS.items()}

    def __init__(self, *, encoder: str, decoder: str | None = None, mean=None, std=None):
        super().__init__()
        for name, path in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(path, (str, os.PathLike)) and not (name == "decoder" and path is None):
                raise ConfigError(f"{name}: expected the path of a safetensors file, got {path!r}.")
        self.paths = dict(encoder=encoder, decoder=decoder)
        mean = per_channel("mean", MEAN if mean is None else mean)
        std = per_channel("std", STD if std is None else std, positive=True)
        self.register_buffer("mean", mean, persistent=False)  # follows `.to()`, and is in no checkpoint
        self.register_buffer("std", std, persistent=False)

    def load(self) -> None:
        """Reads the files that were given, once: a wrong path shows when training starts, not at its first picture."""
        for name in ("encoder", "decoder"):
            if self.paths[name] is not None or name == "encoder":
                self.part(name)

    def part(self, name: str) -> nn.Sequential:
        """The frozen encoder or decoder, read now if it was not before."""
        if name not in self.__dict__.get("held", {}):
            with torch.device("cpu"):
                net = read(getattr(network, name)(), self.paths[name], name)
            self.hold(**{name: net.to(self.mean)})  # its device and dtype
        return self.held[name]

    @torch.no_grad()
    def encode(self, images: Tensor, taps: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """images [B, 3, H, W] in [0, 1] -> mean [B, 32, H/8, W/8] float32, std zeros, and the levels `taps`, shallow ->
        deep. Without `latent` it stops at the deepest of them."""
        for name in taps:
            if name not in self.levels:
                raise ConfigError(f"TAEF2 has no level {name!r}{nearest(name, self.levels)}")
        check_images(images, self.downsample)
        *body, last = self.part("encoder")
        wanted, found, x = set(taps), {}, images.to(self.mean.dtype)
        with full_precision(x):
            for name, module in zip(self.levels, body, strict=True):
                x = module(x)
                if name in wanted:
                    found[name] = x
                if not latent and len(found) == len(wanted):
                    return Encoded(None, None, found)
            mean = (last(x).float() - self.mean.float()) / self.std.float()
        return Encoded(mean, torch.zeros_like(mean), found)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent [B, 32, h, w] in the diffusion's scale -> images [B, 3, 8h, 8w] float32 in [0, 1]."""
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(f"latent: expected [B, {self.latent_channels}, h, w], got {list(latent.shape)}.")
        net = self.part("decoder")
        raw = (latent.float() * self.std.float() + self.mean.float()).to(self.mean.dtype)
        with full_precision(raw):
            return torch.cat([net(part).float() for part in raw.split(DECODE_BATCH)]).clamp(0, 1)


def check_images(images: Tensor, multiple: int) -> None:
    """ValueError unless they are floats [B, 3, H, W] with sides that are multiples of `multiple`."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images: expected floats in [0, 1] [B, 3, H, W], got {images.dtype} {list(images.shape)}.")
    if images.shape[2] % multiple or images.shape[3] % multiple:
        raise ValueError(f"images: sides must be multiples of {multiple}, got {list(images.shape[2:])}.")


def full_precision(x: Tensor):
    """The network's own precision, whatever autocast the training runs under."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
