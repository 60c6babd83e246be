"""The latent tokenizer: any diffusers AutoencoderKL, whose one encoder pass yields latents and levels together.

Stable Diffusion's encoder has 15 levels in the order in which an image passes them (AHPA: "15 VAE encoder layers"):
conv_in; of each of four blocks two residual layers and, but for the last, a downsampler; in the middle a residual
layer, attention, a residual layer. Levels are module outputs, after the residual sum. The final norm and convolution
are none.
"""

import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..registry import AUTOENCODERS, ConfigError, nearest
from ..registry.contracts import Autoencoder, Encoded, LevelSpec
from ..registry.numerics import full_precision
from . import sources

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' clamp of the posterior's log variance
DECODE_BATCH = 16  # images decoded at once


def level_specs(channels: Sequence[int], layers: int, attention: bool = True) -> dict[str, LevelSpec]:
    """The levels of an encoder with these block widths and residual layers a block, shallow -> deep."""
    levels, stride = {"conv_in": LevelSpec(channels[0], 1)}, 1
    for block, width in enumerate(channels):
        for layer in range(layers):
            levels[f"down{block}.res{layer}"] = LevelSpec(width, stride)
        if block < len(channels) - 1:
            stride *= 2
            levels[f"down{block}.down"] = LevelSpec(width, stride)
    for name in ("mid.res0", "mid.attn", "mid.res1") if attention else ("mid.res0", "mid.res1"):
        levels[name] = LevelSpec(channels[-1], stride)
    return levels


def _number(name: str, value, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number, got {value!r}.")
    if positive and value <= 0:
        raise ConfigError(f"{name}: must be above 0, got {value}.")
    return float(value)


@AUTOENCODERS.register_module()
class KLAutoencoder(Autoencoder):
    """A diffusers AutoencoderKL by folder, single file, hub id or 'bundled'; frozen, and loaded when first used.

    source: 'bundled', a diffusers folder (or a pipeline's, with `subfolder`, by default vae/), a .safetensors or .ckpt
    file in diffusers' or the original key names, or a hub id OWNER/NAME. Latents z = (raw - shift) * scale, by default
    with the factors of its config.json (of a lone file of 4 channels: Stable Diffusion's 0.18215); or, with per-channel
    `mean` and `std` (lists of C numbers), z = (raw - mean) / std. precision: of weights and computation ('fp32',
    'bf16', 'fp16'). Raises UserError where there is no such autoencoder, ConfigError for options that do not fit.
    """

    demo = dict(source="bundled", subfolder=None, scale=None, shift=None, mean=None, std=None)

    def __init__(self, *, source: str = "stabilityai/sd-vae-ft-mse", subfolder: str | None = None,
                 scale: float | None = None, shift: float | None = None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, precision: str = "fp32", channels_last: bool = True):  # fmt: skip
        super().__init__()
        if precision not in DTYPES:
            raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
        if not isinstance(source, (str, os.PathLike)) or not str(source):
            raise ConfigError(f"source: expected a folder, a file, a hub id or 'bundled', got {source!r}.")
        self.source, self.subfolder, self.channels_last = str(source), subfolder, channels_last
        self.precision = precision
        self.found = sources.find(self.source, subfolder)
        config = self.found.config
        channels = config["block_out_channels"]
        self.latent_channels, self.downsample = config["latent_channels"], 2 ** (len(channels) - 1)
        self.levels = level_specs(channels, config["layers_per_block"], config["mid_block_add_attention"])
        self._constants = dict(zip(("offset", "factor"), self._normalisation(scale, shift, mean, std)))
        # Follows `.to()`, so that it says where, and as what, the weights are to be once they are loaded.
        self.register_buffer("_place", torch.empty(0, dtype=DTYPES[precision], device="cpu"), persistent=False)
        for name in self._constants:
            self.register_buffer(name, None, persistent=False)
        self._set_constants()

    def _normalisation(self, scale, shift, mean, std) -> tuple[list[float], list[float]]:
        """-> (offset, factor) of z = (raw - offset) * factor, one number a channel or one for all."""
        config, channels = self.found.config, self.latent_channels
        if (mean is not None or std is not None) and (scale is not None or shift is not None):
            raise ConfigError("give either scale and shift, or mean and std per channel, not both.")
        if mean is not None or std is not None:
            mean = self._per_channel("mean", [0.0] * channels if mean is None else mean)
            std = self._per_channel("std", [1.0] * channels if std is None else std, positive=True)
            return mean, [1 / value for value in std]
        if scale is None and config["scaling_factor"] is None:
            raise ConfigError(f"scale: {self.source} does not tell the factor of its {channels}-channel latents; give "
                              "scale (and shift), or mean and std.")  # fmt: skip
        factor = _number("scale", config["scaling_factor"] if scale is None else scale, positive=True)
        if scale is None and shift is None and config["latents_mean"] and config["latents_std"]:
            mean = self._per_channel("latents_mean", config["latents_mean"])
            std = self._per_channel("latents_std", config["latents_std"], positive=True)
            return mean, [factor / value for value in std]  # as diffusers' pipelines apply them together
        return [_number("shift", (config["shift_factor"] or 0.0) if shift is None else shift)], [factor]

    def _per_channel(self, name, values, *, positive=False) -> list[float]:
        if not isinstance(values, (list, tuple)) or len(values) != self.latent_channels:
            given = f"{len(values)} numbers" if isinstance(values, (list, tuple)) else repr(values)
            raise ConfigError(f"{name}: {given} for {self.latent_channels} latent channels, expected one for each.")
        return [_number(name, value, positive=positive) for value in values]

    def _set_constants(self) -> None:
        """Float32 whatever the weights are; made of Python's numbers, so that no cast or `to_empty` can spoil them."""
        for name, values in self._constants.items():
            value = torch.tensor(values, dtype=torch.float32, device=self._place.device)  # [C] or [1]
            setattr(self, name, value.view(1, -1, 1, 1))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._set_constants()
        return self

    # ---- loading ----

    def load(self) -> None:
        """Reads the weights once. UserError where they are not, with what was looked for and what to do."""
        if "vae" in self.__dict__.get("held", {}):
            return
        vae = sources.read_network(self._weights, self.found.config, self._place.dtype).to(self._place.device)
        self.hold(vae=vae.to(memory_format=torch.channels_last) if self.channels_last else vae)

    @cached_property
    def _weights(self):
        return sources.weights(self.found, self.source, self.subfolder)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the weights' file, for whatever is computed from them and stored."""
        return sources.file_hash(self._weights)

    # ---- use ----

    def _enter(self, x: Tensor) -> Tensor:
        x = x.to(self._place.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            given = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images: expected floats in [0, 1] [B, 3, H, W], got {given}.")
        if images.shape[2] % self.downsample or images.shape[3] % self.downsample:
            raise ValueError(f"images: sides must be multiples of {self.downsample}, got {list(images.shape[2:])}.")

    @torch.no_grad()
    def encode(self, images: Tensor, taps: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """images [B, 3, H, W] in [0, 1] -> the posterior's moments [B, C, H/s, W/s] float32 in the diffusion's scale
        and the levels `taps`, shallow -> deep, in the autoencoder's precision. Without `latent` it stops at the
        deepest of them. ValueError for images that do not fit, ConfigError for a level that there is not."""
        for name in taps:
            if name not in self.levels:
                raise ConfigError(f"the autoencoder has no level {name!r}{nearest(name, self.levels)}")
        self._check_images(images)
        self.load()
        wanted, found = set(taps), {}
        with full_precision(self.offset.device):
            for name, x in self._pass(self._enter(2 * images - 1)):
                if name in wanted:
                    found[name] = x
                if not latent and len(found) == len(wanted):
                    return Encoded(None, None, found)
            vae = self.held["vae"]
            moments = vae.encoder.conv_out(vae.encoder.conv_act(vae.encoder.conv_norm_out(x)))
            moments = (moments if vae.quant_conv is None else vae.quant_conv(moments)).float()
            raw, logvar = moments.contiguous().chunk(2, dim=1)
            std = torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE))
        return Encoded((raw - self.offset) * self.factor, std * self.factor, found)

    def _pass(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each level as the image passes it, so that a reader may stop."""
        encoder = self.held["vae"].encoder
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

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent [B, C, h, w] in the diffusion's scale -> images [B, 3, H, W] float32 in [0, 1]. ValueError for another
        number of channels."""
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(f"latent: expected [B, {self.latent_channels}, h, w], got {list(latent.shape)}.")
        self.load()
        raw = latent.float() / self.factor + self.offset
        with full_precision(self.offset.device):
            parts = [self.held["vae"].decode(self._enter(part)).sample.float() for part in raw.split(DECODE_BATCH)]
        return (torch.cat(parts).contiguous() / 2 + 0.5).clamp(0, 1)
