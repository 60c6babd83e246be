"""Sampling from trained weights: only the backbone's EMA, the flow and the tokenizer. No prior, router or projector is
built, so inference costs what the vanilla transformer costs.

Sample i of a call is a function of (seed, i) alone: not of the batch size, nor of how many are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..registry import GUIDANCES, SAMPLERS, UserError, nearest
from ..registry.contracts import Streams
from .denoiser import generator_parts
from .optim import DTYPES, check_precision
from .shared import read_run


class Noise:
    """Standard normals for a batch of samples, each from its own stream (seed, index), drawn on the CPU."""

    def __init__(self, seed: int, indices: Sequence[int]):
        mixed = [(seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 1) % 2**63 for index in indices]
        self.streams = [torch.Generator().manual_seed(value) for value in mixed]

    def draw(self, shape: Sequence[int], device) -> Tensor:
        """-> [B, *shape] float32."""
        return torch.stack([torch.randn(tuple(shape), generator=stream) for stream in self.streams]).to(device)

    def __call__(self, like: Streams) -> Streams:
        return {name: self.draw(x.shape[1:], x.device) for name, x in like.items()}


class Generator:
    """Draws images from a backbone: `Generator.load(checkpoint)` or from parts."""

    def __init__(self, *, tokenizer, backbone, flow, conditioner):
        self.tokenizer, self.backbone, self.flow, self.conditioner = tokenizer, backbone, flow, conditioner

    @classmethod
    def load(cls, path: Path | str, *, vae: Mapping | None = None, device="cpu", weights: str = "ema") -> "Generator":
        """Reads the EMA (or `weights='model'`, the raw ones) of a checkpoint, a run's work dir, a published folder or a
        hub id. `vae` replaces the tokenizer's config.

        Its config is plain data: nothing in it is executed. Raises UserError where the file or the autoencoder's
        weights are missing.
        """
        model, own = read_run(path, weights)
        wanted = ("resolution", "tokenizer", "backbone", "flow", "conditioner")
        chosen = {key: model[key] for key in wanted if key in model} | ({"tokenizer": vae} if vae else {})
        parts = generator_parts(**chosen)
        try:
            parts["backbone"].load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{path}: the weights do not fit the config's backbone: {reason}") from error
        for name in ("tokenizer", "conditioner"):
            if hasattr(parts[name], "load"):
                parts[name].load()
            parts[name].to(device)
        parts["backbone"].to(device).eval()
        return cls(**parts)

    def velocity(self, x: Streams, t: Tensor, cond) -> Streams:
        return self.backbone(x, t, cond).pred

    def sample(self, labels: Sequence, **options) -> Tensor:
        """labels: for each sample a class number, or whatever the conditioner takes -> uint8 [n, 3, H, W] on the CPU.
        Options: see `batches`."""
        return torch.cat(list(self.batches(labels, **options)))

    def sampler(self, name: str | None):
        """The sampler of that name, or the flow's default. UserError for one that does not fit the flow."""
        name = self.flow.samplers[0] if name is None else name
        sampler = SAMPLERS.get(name)
        if name not in self.flow.samplers:
            raise UserError(
                f"sampler: {name!r} does not fit the {type(self.flow).__name__}{nearest(name, self.flow.samplers)}"
            )
        return sampler

    @torch.no_grad()
    def batches(self, labels: Sequence, *, sampler: str | None = None, steps: int = 250, cfg_scale: float = 1.0,
                cfg_interval=(0.0, 1.0), cfg_channels: int | None = None, seed: int = 0, batch: int = 64,
                precision: str = "fp32", first: int = 0) -> Iterator[Tensor]:  # fmt: skip
        """Yields uint8 [b, 3, H, W] in order. sampler: one that fits the flow ('euler', 'heun', 'sde' for a velocity,
        'ddpm', 'ddim' for a discrete flow), with `steps`; cfg_scale: guidance, 1 is none, applied for t inside
        cfg_interval to the latent's first cfg_channels (all by default); `first`: the index of the first sample (for
        splitting a set)."""
        device, dtype = next(self.backbone.parameters()).device, DTYPES[check_precision(precision)]
        draw, guided = self.sampler(sampler), GUIDANCES.get("classifier-free")
        for begin in range(0, len(labels), batch):
            part = labels[begin : begin + batch]
            noise = Noise(seed, range(first + begin, first + begin + len(part)))
            start = {name: noise.draw(shape, device) for name, shape in self.backbone.streams.items()}
            cond, null = self.conditioner.encode(part, device), self.conditioner.null(len(part), device)
            velocity = guided(self.velocity, cond, null, cfg_scale, tuple(cfg_interval), cfg_channels)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                latent = draw(velocity, start, steps=steps, path=self.flow.path, noise=noise)["image"]
            images = self.tokenizer.decode(latent.float())
            yield (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
