"""What this package brings to ahpa: `TAEF2`, an autoencoder, and `TAEF2Taps`, a prior of its encoder's levels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ahpa.registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build, nearest
from ahpa.registry.contracts import Autoencoder, Encoded, Features, LevelSpec, Prior, Step

from . import network

CHANNELS = 32
# Mean and std of each raw latent channel over 100 images of an ImageNet sample at 256 px (each tenth by name).
MEAN = (
    0.034, 0.008, -0.084, 0.02, 0.046, 0.076, -0.062, 0.024, 0.009, 0.068, 0.058, -0.048, 0.064, 0.092, -0.042, 0.022,
    0.024, 0.134, -0.023, 0.009, -0.056, 0.036, 0.064, -0.037, 0.054, -0.053, 0.028, -0.009, 0.108, 0.087, -0.055, 0.028,
)  # fmt: skip
STD = (
    0.73, 0.944, 0.931, 0.996, 0.746, 0.955, 0.939, 0.782, 0.984, 0.653, 0.638, 0.968, 0.71, 0.717, 0.889, 1.002,
    0.782, 0.698, 0.731, 1.003, 0.765, 0.665, 0.759, 0.687, 0.944, 0.735, 0.955, 0.87, 0.745, 0.957, 0.762, 0.955,
)  # fmt: skip
HINT = "TAEF2's weights are safetensors files; give their paths as `encoder` and `decoder`."


def read(path: str | None, what: str) -> dict[str, Tensor]:
    if path is None or not Path(path).expanduser().is_file():
        raise UserError(f"TAEF2: there is no {what} at {path!r}. {HINT}")
    return {name: value.float() for name, value in load_file(Path(path).expanduser()).items()}


@AUTOENCODERS.register_module()
class TAEF2(Autoencoder):
    """The TAEF2 tiny autoencoder as latent tokenizer: 8x down, 32 channels, deterministic.

    encoder, decoder: paths of the safetensors files (the decoder only for pictures). Latents are (raw - mean) / std with
    numbers or lists of 32. UserError when a file is missing, at the first use.
    """

    latent_channels, downsample = CHANNELS, 8

    def __init__(self, *, encoder: str, decoder: str | None = None, mean=MEAN, std=STD):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        strides = [1, 1] + [2] * 4 + [4] * 4 + [8] * 4
        self.levels = {n: LevelSpec(network.WIDTH, s) for n, s in zip(network.LEVELS, strides, strict=True)}
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32, device="cpu").reshape(-1)
            if len(value) not in (1, CHANNELS):
                raise ConfigError(f"{name}: 1 or {CHANNELS} numbers are expected, got {len(value)}.")
            self.register_buffer(name, value.view(1, -1, 1, 1), persistent=False)

    def load(self) -> None:
        if "encoder" not in self.__dict__.get("held", {}):
            net = network.encoder(CHANNELS)
            net.load_state_dict(read(self.encoder, "encoder"))
            self.hold(encoder=net.to(self.mean.device))

    def load_decoder(self) -> None:
        if "decoder" not in self.__dict__.get("held", {}):
            net = network.decoder(CHANNELS)
            net.load_state_dict(read(self.decoder, "decoder"))
            self.hold(decoder=net.to(self.mean.device))

    @torch.no_grad()
    def encode(self, images: Tensor, taps: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """images [B, 3, H, W] in [0, 1] -> mean [B, 32, H/8, W/8], std zeros, and the levels asked for."""
        for name in taps:
            if name not in self.levels:
                raise ConfigError(f"TAEF2 has no level {name!r}{nearest(name, self.levels)}")
        self.load()
        found, x = {}, images.float()
        with torch.autocast(images.device.type, enabled=False):
            *body, head = self.held["encoder"]
            for name, module in zip(self.levels, body, strict=True):
                x = module(x)
                if name in taps:
                    found[name] = x
                if not latent and len(found) == len(set(taps)):
                    return Encoded(None, None, found)
            z = (head(x) - self.mean) / self.std
        return Encoded(z, torch.zeros_like(z), found)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        self.load_decoder()
        with torch.autocast(latent.device.type, enabled=False):
            parts = (latent.float() * self.std + self.mean).split(16)
            return torch.cat([self.held["decoder"](part) for part in parts]).clamp(0, 1)


@PRIORS.register_module()
class TAEF2Taps(Prior):
    """Levels of TAEF2's encoder: from the tokenizer's own pass when that is a TAEF2, else from `encoder` by path."""

    def __init__(self, *, encoder: str | None = None):
        super().__init__()
        self.own = build(AUTOENCODERS, dict(type="TAEF2", encoder=encoder)) if encoder else None
        self.levels, self.requested = (self.own.levels if self.own else {}), ()

    def bind(self, *, tokenizer, backbone) -> None:
        if self.own is None:
            if not isinstance(tokenizer, TAEF2):
                raise ConfigError(f"TAEF2Taps: the tokenizer is a {type(tokenizer).__name__}; give `encoder`, a path.")
            self.levels = tokenizer.levels

    def load(self) -> None:
        if self.own is not None:
            self.own.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        return dict(self.levels)

    def request(self, levels: Sequence[str]) -> None:
        self.requested = tuple(name for name in self.levels if name in set(levels))

    @property
    def shared_levels(self) -> tuple[str, ...]:
        return () if self.own is not None else self.requested

    def forward(self, step: Step) -> Features:
        if self.own is not None:
            return self.own.encode(step.images, self.requested, latent=False).taps
        return {name: step.encoded.taps[name] for name in self.requested}
