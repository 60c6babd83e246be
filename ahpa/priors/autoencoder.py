"""The latent tokenizer: any diffusers AutoencoderKL, whose one encoder pass yields latents and levels together.

Stable Diffusion's encoder has 15 levels in the order in which an image passes them (AHPA: "15 VAE encoder layers"):
conv_in; of each of four blocks two residual layers and, but for the last, a downsampler; in the middle a residual layer,
attention, a residual layer. Levels are module outputs, after the residual sum. The final norm and convolution are none.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..registry import AUTOENCODERS, ConfigError, UserError, nearest
from ..registry.contracts import Autoencoder, Encoded, LevelSpec
from ..registry.numerics import full_precision
from . import sources

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' clamp of the posterior's log variance
DECODE_BATCH = 16  # images decoded at once


def level_specs(channels: Sequence[int], layers: int) -> dict[str, LevelSpec]:
    """The levels of an encoder with these block widths and residual layers a block, shallow -> deep."""
    levels, stride = {"conv_in": LevelSpec(channels[0], 1)}, 1
    for block, width in enumerate(channels):
        for layer in range(layers):
            levels[f"down{block}.res{layer}"] = LevelSpec(width, stride)
        if block < len(channels) - 1:
            stride *= 2
            levels[f"down{block}.down"] = LevelSpec(width, stride)
    for name in ("mid.res0", "mid.attn", "mid.res1"):
        levels[name] = LevelSpec(channels[-1], stride)
    return levels


@AUTOENCODERS.register_module()
class KLAutoencoder(Autoencoder):
    """A diffusers AutoencoderKL by folder, single file, hub id or 'bundled'; frozen, and loaded when first used.

    Latents z = (raw - shift) * scale, by default with the autoencoder's own factors; or, with per-channel `mean` and
    `std` (lists of C numbers), z = (raw - mean) / std. precision: of weights and computation ('fp32', 'bf16', 'fp16').
    Raises UserError where there is no such autoencoder, ConfigError for options that do not fit.
    """

    demo = dict(source="bundled", subfolder=None, scale=None, shift=None, mean=None, std=None)

    def __init__(self, *, source: str = "stabilityai/sd-vae-ft-mse", subfolder: str | None = None,
                 scale: float | None = None, shift: float | None = None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, precision: str = "fp32", channels_last: bool = True):  # fmt: skip
        super().__init__()
        if precision not in DTYPES:
            raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
        self.source, self.subfolder, self.precision, self.channels_last = source, subfolder, precision, channels_last
        self.found = sources.find(source, subfolder)
        config = self.found.config
        channels = config["block_out_channels"]
        self.latent_channels, self.downsample = config["latent_channels"], 2 ** (len(channels) - 1)
        self.levels = level_specs(channels, config.get("layers_per_block", 2))
        offset, factor = self._normalisation(config, scale, shift, mean, std)
        shape = (1, -1, 1, 1)
        self.register_buffer("offset", torch.tensor(offset, device="cpu").view(shape), persistent=False)
        self.register_buffer("factor", torch.tensor(factor, device="cpu").view(shape), persistent=False)

    def _normalisation(self, config, scale, shift, mean, std) -> tuple[list[float], list[float]]:
        """-> (offset, factor) of z = (raw - offset) * factor, one number a channel or one for all."""
        if (mean is not None or std is not None) and (scale is not None or shift is not None):
            raise ConfigError("give either scale and shift, or mean and std per channel, not both.")
        explicit = any(value is not None for value in (scale, shift, mean, std))
        if not explicit and config.get("latents_mean") and config.get("latents_std"):
            factor = config.get("scaling_factor", 1.0)  # as diffusers' pipelines apply them together
            return list(config["latents_mean"]), [factor / value for value in config["latents_std"]]
        if mean is not None or std is not None:
            mean, std = mean or [0.0] * self.latent_channels, std or [1.0] * self.latent_channels
            for name, values in (("mean", mean), ("std", std)):
                if len(values) != self.latent_channels:
                    raise ConfigError(f"{name}: {len(values)} numbers for {self.latent_channels} latent channels.")
            if min(std) <= 0:
                raise ConfigError(f"std: must be above 0, got {list(std)}.")
            return list(map(float, mean)), [1 / value for value in std]
        factor = scale if scale is not None else config.get("scaling_factor", 1.0)
        if factor <= 0:
            raise ConfigError(f"scale: must be above 0, got {factor}.")
        return [float(shift if shift is not None else config.get("shift_factor") or 0.0)], [float(factor)]

    # ---- loading ----

    def load(self) -> None:
        """Reads the weights once. UserError where they are not, with what was looked for and what to do."""
        if "vae" in self.__dict__.get("held", {}):
            return
        vae = self._read().to(DTYPES[self.precision])
        if self.channels_last:
            vae = vae.to(memory_format=torch.channels_last)
        self.hold(vae=vae.to(self.offset.device))

    def _read(self):
        from diffusers import AutoencoderKL
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it advises about packages that are not needed here
        kind, path, config = self.found
        options = dict(torch_dtype=torch.float32, low_cpu_mem_usage=False)
        if kind == "folder":
            try:
                return AutoencoderKL.from_pretrained(path, **options)
            except OSError as error:
                raise UserError(f"{path} has a config.json but no weights that can be read: {error}") from error
        if kind == "file":
            return self._read_file(path, config)
        try:
            extra = dict(subfolder=self.subfolder) if self.subfolder else {}
            return AutoencoderKL.from_pretrained(self.source, local_files_only=sources.offline(), **extra, **options)
        except Exception as error:  # not cached, no network, no such repository: many kinds
            raise UserError(sources.missing(self.source, error)) from error

    @staticmethod
    def _read_file(path, config):
        from diffusers import AutoencoderKL

        blocks = len(config["block_out_channels"])
        own = {key: config[key] for key in ("block_out_channels", "layers_per_block", "latent_channels",
                                            "use_quant_conv", "use_post_quant_conv")}  # fmt: skip
        groups = 32 if all(width % 32 == 0 for width in own["block_out_channels"]) else 8
        vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * blocks, norm_num_groups=groups,
                            up_block_types=("UpDecoderBlock2D",) * blocks, **own)  # fmt: skip
        state = {key: value.float() for key, value in sources.read_tensors(path).items()}
        if config["ldm"]:
            state = {from_ldm(key, blocks): value for key, value in state.items()}
        wanted = vae.state_dict()
        missing = [key for key in wanted if key not in state]
        if missing:
            raise UserError(f"{path} lacks {len(missing)} weights of an AutoencoderKL, the first is {missing[0]}.")
        vae.load_state_dict({key: state[key].reshape(value.shape) for key, value in wanted.items()})
        return vae

    @property
    def fingerprint(self) -> str:
        """A short hash of the weights, for whatever is computed from them and stored."""
        self.load()
        return sources.fingerprint(self.found, self.held["vae"].state_dict())

    # ---- use ----

    def _enter(self, x: Tensor) -> Tensor:
        x = x.to(DTYPES[self.precision])
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    @torch.no_grad()
    def encode(self, images: Tensor, taps: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """images [B, 3, H, W] in [0, 1] -> the posterior's moments [B, C, H/s, W/s] float32 in the diffusion's scale and
        the levels `taps`, in order, in the autoencoder's precision. Without `latent` it stops at the deepest tap."""
        for name in taps:
            if name not in self.levels:
                raise ConfigError(f"the autoencoder has no level {name!r}{nearest(name, self.levels)}")
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
        if encoder.mid_block.attentions and encoder.mid_block.attentions[0] is not None:
            x = encoder.mid_block.attentions[0](x)
        yield "mid.attn", x
        yield "mid.res1", encoder.mid_block.resnets[1](x, None)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent [B, C, h, w] in the diffusion's scale -> images [B, 3, H, W] float32 in [0, 1]."""
        self.load()
        raw = latent.float() / self.factor + self.offset
        with full_precision(self.offset.device):
            parts = [self.held["vae"].decode(self._enter(part)).sample.float() for part in raw.split(DECODE_BATCH)]
        return (torch.cat(parts).contiguous() / 2 + 0.5).clamp(0, 1)


def from_ldm(key: str, blocks: int) -> str:
    """A key of the original latent-diffusion layout -> diffusers' name of the same weight."""
    for old, new in (("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
                     ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
                     ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
                     ("mid.attn_1.q", "mid_block.attentions.0.to_q"), ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
                     ("mid.attn_1.v", "mid_block.attentions.0.to_v"), ("nin_shortcut", "conv_shortcut"),
                     ("norm_out", "conv_norm_out"), (".downsample.", ".downsamplers.0."),
                     (".upsample.", ".upsamplers.0.")):  # fmt: skip
        key = key.replace(old, new)
    part = key.split(".")
    if part[1:2] == ["down"]:
        part[1] = "down_blocks"
    elif part[1:2] == ["up"]:  # the original counts its decoder's blocks from the finest
        part[1], part[2] = "up_blocks", str(blocks - 1 - int(part[2]))
    return ".".join("resnets" if name == "block" else name for name in part)
