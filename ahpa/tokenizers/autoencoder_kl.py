"""The latent tokenizer: any diffusers AutoencoderKL, whose encoder pass yields latents and levels.

Must match: `AutoencoderKL.encode` and `.decode` of diffusers.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import TOKENIZERS, ConfigError
from ..registry.contracts import Encoded, LevelSpec, Tokenizer
from ..registry.precision import dtype_of, full_precision
from ..registry.validation import boolean, choice, number, positive
from . import sources
from .statistics import PUBLISHED

logger = logging.getLogger("ahpa")

LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' clamp of the posterior's log variance
DECODE_BATCH = 16  # images decoded at once


@TOKENIZERS.register_module()
class KLAutoencoder(Tokenizer):
    """A frozen AutoencoderKL of diffusers; its weights are loaded when first used.

    Latents are z = (raw - shift) * scale, or z = (raw - mean) / std per channel. By default the
    factors of the autoencoder's config.json apply; for a single file of 4 channels Stable
    Diffusion's 0.18215. That factor leaves Stable Diffusion's latents a variance of about 0.52, so
    with it the signal-to-noise ratio at the same t is about half of what per-channel statistics
    give (iREPA and AHPA use such statistics).

    Levels are the outputs of the encoder's layers in the order in which an image passes them, 15
    for Stable Diffusion: `conv_in`; in each of four blocks two residual layers and, except in the
    last, a downsampler; in the middle a residual layer, attention and a residual layer (AHPA,
    section 4.1: "15 VAE encoder layers"). A residual layer's output includes its residual sum.

    Args:
        source: "bundled", a diffusers folder (or a pipeline's), a .safetensors or .ckpt file in
            diffusers' or the original names, or a hub id OWNER/NAME.
        subfolder: Where in the folder or repository it lies; by default at the top, or in "vae".
        scale: Factor of the latents.
        shift: Offset of the latents.
        mean: Mean of each latent channel, instead of `shift`.
        std: Standard deviation of each latent channel, instead of `scale`.
        statistics: Name of published `mean` and `std`, instead of both: "sd-imagenet" (Stable
            Diffusion's encoder on ImageNet). `ahpa latent-statistics` measures others.
        precision: "fp32", "bf16" or "fp16", of weights and computation; levels come in it, the
            posterior and decoded images are float32.
        channels_last: Whether convolutions use the channels-last memory format.

    Raises:
        UserError: If there is no such autoencoder.
        ConfigError: If an option is not valid.
    """

    _place: Tensor
    offset: Tensor
    factor: Tensor

    def __init__(
        self,
        *,
        source: str = "stabilityai/sd-vae-ft-mse",
        subfolder: str | None = None,
        scale: float | None = None,
        shift: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        statistics: str | None = None,
        precision: str = "fp32",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        dtype = dtype_of("precision", precision)
        if not isinstance(source, (str, os.PathLike)) or not str(source):
            raise ConfigError(
                f"source: must be 'bundled', a folder, a file or a hub id, got {source!r}."
            )
        self.source = str(source)
        self.subfolder = subfolder
        self.precision = precision
        self.channels_last = boolean("channels_last", channels_last)
        self.found = sources.find(self.source, subfolder)
        config = self.found.config
        channels = config["block_out_channels"]
        self.latent_channels = config["latent_channels"]
        self.downsample = 2 ** (len(channels) - 1)
        self.levels = level_specs(
            channels, config["layers_per_block"], config["mid_block_add_attention"]
        )
        if statistics is not None:
            if (scale, shift, mean, std) != (None,) * 4:
                raise ConfigError(
                    "statistics: replaces scale, shift, mean and std; leave them out."
                )
            mean, std = PUBLISHED[choice("statistics", statistics, tuple(PUBLISHED))]
            if config["scaling_factor"] != sources.SD["scaling_factor"]:
                logger.warning(
                    "model.tokenizer.statistics: %r was measured on Stable Diffusion's encoder, "
                    "but %s has the scaling factor %s. Measure its own with ahpa latent-statistics "
                    "and set mean and std.",
                    statistics,
                    self.source,
                    config["scaling_factor"],
                )
        if mean is None and std is None:
            self._offset, self._factor = self._scale_and_shift(scale, shift)
        elif scale is None and shift is None:
            self._offset, self._factor = self._mean_and_std(mean, std)
        else:
            raise ConfigError("give either scale and shift, or mean and std, not both.")
        # An empty buffer follows `.to()`: it holds the device and dtype that the weights will get.
        self.register_buffer("_place", torch.empty(0, dtype=dtype, device="cpu"), persistent=False)
        self._set_constants()
        self.network: Any = None

    def _scale_and_shift(
        self, scale: float | None, shift: float | None
    ) -> tuple[list[float], list[float]]:
        """Return (offset, factor) of z = (raw - offset) * factor, from options or the config."""
        config = self.found.config
        if scale is None and config["scaling_factor"] is None:
            raise ConfigError(
                f"scale: {self.source} does not tell the factor of its "
                f"{self.latent_channels}-channel latents; give scale (and shift), or mean and std."
            )
        if scale is None:
            factor = positive("scaling_factor", config["scaling_factor"])
        else:
            factor = positive("scale", scale)
        if scale is None and shift is None and config["latents_mean"] and config["latents_std"]:
            mean = self._per_channel("latents_mean", config["latents_mean"], number)
            std = self._per_channel("latents_std", config["latents_std"], positive)
            return mean, [factor / value for value in std]  # diffusers' pipelines apply both
        if shift is None:
            return [number("shift_factor", config["shift_factor"] or 0.0)], [factor]
        return [number("shift", shift)], [factor]

    def _mean_and_std(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[list[float], list[float]]:
        """Return (offset, factor) of z = (raw - offset) * factor, one number a channel."""
        zeros = [0.0] * self.latent_channels
        ones = [1.0] * self.latent_channels
        offset = self._per_channel("mean", zeros if mean is None else mean, number)
        scales = self._per_channel("std", ones if std is None else std, positive)
        return offset, [1 / value for value in scales]

    def _per_channel(
        self, name: str, values: Any, validator: Callable[[str, Any], float]
    ) -> list[float]:
        if not isinstance(values, (list, tuple)) or len(values) != self.latent_channels:
            given = f"{len(values)}" if isinstance(values, (list, tuple)) else repr(values)
            raise ConfigError(
                f"{name}: must be {self.latent_channels} numbers, one for each latent channel, "
                f"got {given}."
            )
        return [validator(name, value) for value in values]

    def _set_constants(self) -> None:
        """Set offset and factor anew from Python numbers: always float32, even after a cast."""
        for name, values in (("offset", self._offset), ("factor", self._factor)):
            value = torch.tensor(values, dtype=torch.float32, device=self._place.device)  # [C], [1]
            self.register_buffer(name, value.view(1, -1, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KLAutoencoder":
        super()._apply(fn, recurse)
        self._set_constants()
        return self

    # ---- loading ----

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""
        if self.network is not None:
            return
        network = sources.read_network(self._weights, self.found.config, self._place.dtype)
        network = network.to(self._place.device)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        self.network = network.eval().requires_grad_(False)

    @cached_property
    def _weights(self) -> Path:
        return sources.weights_path(self.found, self.source, self.subfolder)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the weight file, for what is computed from the weights and stored."""
        return sources.file_hash(self._weights)

    # ---- use ----

    @torch.no_grad()
    def encode(self, images: Tensor, levels: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """Encode images.

        Args:
            images: [B, 3, H, W] float in [0, 1]; H and W multiples of `downsample`.
            levels: Names of the encoder levels to return.
            latent: Whether the posterior is needed; without it the pass ends at the deepest level.

        Returns:
            The posterior [B, C, H/s, W/s] in the diffusion's scale and the levels, shallow -> deep.

        Raises:
            ValueError: If the images do not fit.
            ConfigError: If a level is unknown.
        """
        for name in levels:
            choice("levels", name, tuple(self.levels))
        self._check_images(images)
        self.load()
        found = {}
        with full_precision(self.offset.device):
            for name, x in self._layers(self._enter(2 * images - 1)):
                if name in levels:
                    found[name] = x
                if not latent and len(found) == len(set(levels)):
                    return Encoded(None, None, found)
            encoder = self.network.encoder
            moments = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
            if self.network.quant_conv is not None:
                moments = self.network.quant_conv(moments)
            mean, logvar = moments.float().contiguous().chunk(2, dim=1)
            std = torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE))
        return Encoded((mean - self.offset) * self.factor, std * self.factor, found)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images [B, 3, H, W] float32 in [0, 1].

        Raises:
            ValueError: If the number of channels is wrong.
        """
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            expected = f"[B, {self.latent_channels}, h, w]"
            raise ValueError(f"latent: must be {expected}, got {list(latent.shape)}.")
        self.load()
        raw = latent.float() / self.factor + self.offset
        with full_precision(self.offset.device):
            parts = [
                self.network.decode(self._enter(part)).sample.float()
                for part in raw.split(DECODE_BATCH)
            ]
        return (torch.cat(parts).contiguous() / 2 + 0.5).clamp(0, 1)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            given = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images: must be floats in [0, 1] [B, 3, H, W], got {given}.")
        sides = list(images.shape[2:])
        if any(side % self.downsample for side in sides):
            raise ValueError(f"images: sides must be multiples of {self.downsample}, got {sides}.")

    def _enter(self, x: Tensor) -> Tensor:
        """Convert to the network's dtype and memory format."""
        x = x.to(self._place.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def _layers(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (level, output) as the image passes the encoder; a reader may stop early."""
        encoder = self.network.encoder
        x = encoder.conv_in(x)
        yield "conv_in", x
        for block, part in enumerate(encoder.down_blocks):
            for layer, module in enumerate(part.resnets):
                x = module(x, None)
                yield f"down{block}.res{layer}", x
            for module in part.downsamplers or ():
                x = module(x)
                yield f"down{block}.down", x
        x = encoder.mid_block.resnets[0](x, None)
        yield "mid.res0", x
        if "mid.attn" in self.levels:
            x = encoder.mid_block.attentions[0](x)
            yield "mid.attn", x
        yield "mid.res1", encoder.mid_block.resnets[1](x, None)


def level_specs(
    channels: Sequence[int], layers: int, attention: bool = True
) -> Mapping[str, LevelSpec]:
    """Return the levels of an encoder, shallow -> deep.

    Args:
        channels: Width of each block.
        layers: Residual layers a block.
        attention: Whether the middle has attention.
    """
    levels = {"conv_in": LevelSpec(channels[0], 1)}
    stride = 1
    for block, width in enumerate(channels):
        for layer in range(layers):
            levels[f"down{block}.res{layer}"] = LevelSpec(width, stride)
        if block < len(channels) - 1:
            stride *= 2
            levels[f"down{block}.down"] = LevelSpec(width, stride)
    middle = ("mid.res0", "mid.attn", "mid.res1") if attention else ("mid.res0", "mid.res1")
    for name in middle:
        levels[name] = LevelSpec(channels[-1], stride)
    return levels
