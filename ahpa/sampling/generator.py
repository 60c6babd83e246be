"""Images from a trained backbone, flow, conditioner and tokenizer. No prior, router or projector is
needed, so inference costs what the vanilla transformer costs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import GUIDANCES, SAMPLERS, ConfigError, UserError, build, nearest
from ..registry.contracts import (
    Backbone,
    Conditioner,
    Flow,
    Guidance,
    Prediction,
    Sampler,
    Streams,
    Tokenizer,
)
from ..registry.precision import autocast, dtype_of
from ..registry.validation import integer, positive_int
from .guidance import ClassifierFreeGuidance
from .progress import SamplingBar

LARGEST_SEED = 2**63


def check_kind(noise: Any) -> None:
    """Raise ValueError unless given noise is None or {name of a stream: tensor}."""
    if noise is None:
        return
    streams = isinstance(noise, Mapping) and all(isinstance(x, Tensor) for x in noise.values())
    if not streams:
        held = type(noise).__name__
        if isinstance(noise, Mapping):
            held = f"a dict of {', '.join(sorted({type(x).__name__ for x in noise.values()}))}"
        raise ValueError(f"noise: must be {{name of a stream: tensor}}, got {held}.")


class SampleNoise:
    """Standard normals for a batch of samples, each from a stream (seed, index) of its own.

    They are drawn on the CPU, so that a sample is the same on every device.

    Args:
        seed: Seed of the whole set of samples.
        indices: The number of each sample of the batch in that set.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
    ) -> None:
        self.streams = []
        for index in indices:
            mixed = seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 1
            self.streams.append(torch.Generator().manual_seed(mixed % 2**63))

    def draw(
        self,
        shape: Sequence[int],
        device: torch.device,
    ) -> Tensor:
        """Draw [B, *shape], float32."""
        size = tuple(shape)
        normals = [torch.randn(size, generator=stream) for stream in self.streams]
        return torch.stack(normals).to(device)

    def __call__(self, like: Streams) -> Streams:
        """Draw normals in the shapes of the given streams [B, ...]."""
        return {name: self.draw(x.shape[1:], x.device) for name, x in like.items()}


class Generator:
    """Draws samples from trained parts.

    Sample i of a call is a function of (seed, i) alone: neither the batch size nor the number of
    samples changes it (but for the rounding of the hardware's kernels, and for the tolerances of an
    adaptive sampler). `sample` draws images, `latents` the latents of one batch, both from given
    noise too; `start_noise` is the noise of a seed, and `decode` turns latents into images.

    Args:
        tokenizer: Decodes the latents.
        backbone: The trained network, usually the EMA, in eval mode.
        flow: The flow that it was trained with.
        conditioner: Encodes the requested classes or prompts.
        classes: Names of the classes in the order of their numbers; None if they have none.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        backbone: Backbone,
        flow: Flow,
        conditioner: Conditioner,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.classes = None if classes is None else tuple(classes)
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.flow = flow
        self.conditioner = conditioner

    def predict(
        self,
        x: Streams,
        t: Tensor,
        cond: Any,
    ) -> Streams:
        """Return what samplers integrate (`flow.provides`) at x, times t [B] and a condition."""
        return self.flow.to_target(self.backbone(x, t, cond).pred, x, t)

    def sampler(
        self,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
    ) -> Sampler:
        """Return a sampler that fits the flow.

        Args:
            sampler: A registered name, a config or an object; None for the flow's default.

        Raises:
            UserError: If it needs something else than the flow provides; names those that fit.
        """
        if sampler is None:
            sampler = self.flow.default_sampler
        cfg = dict(type=sampler) if isinstance(sampler, str) else sampler
        built: Sampler = build(SAMPLERS, cfg, where="sampler")
        if built.needs == self.flow.provides:
            return built
        name = str(cfg["type"]) if isinstance(cfg, Mapping) else type(built).__name__
        every = SAMPLERS.names()
        fitting = [other for other in every if SAMPLERS.get(other).needs == self.flow.provides]
        raise UserError(
            f"sampler: {name!r} does not fit the {type(self.flow).__name__}: it needs a "
            f"{built.needs}, the flow provides a {self.flow.provides}{nearest(name, fitting)}"
        )

    def check(
        self,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
        cfg_channels: int | None = None,
        cls_cfg_scale: float | None = None,
    ) -> None:
        """Refuse a sampler or a guidance that would fail at the first step.

        Args:
            sampler: See `batches`.
            cfg_channels: See `batches`.
            cls_cfg_scale: See `batches`.

        Raises:
            ConfigError: If the sampler does not fit the flow, the latent has fewer channels, or
                there is no stream beside the image.
        """
        self.sampler(sampler)
        latent = self.backbone.streams["image"][0]
        if cfg_channels is not None and cfg_channels > latent:
            raise ConfigError(
                f"cfg_channels: {cfg_channels} exceeds the latent's {latent} channels; at most "
                f"{latent}."
            )
        if cls_cfg_scale is not None and len(self.backbone.streams) == 1:
            raise ConfigError("cls_cfg_scale: the backbone has no stream beside the image.")

    def class_number(self, name: str) -> int:
        """Return the number of a class by its name, or by its number as a text, "3" or "#3".

        Raises:
            UserError: If there is no such class, or if the text is the number of one class and the
                name of another.
        """
        names = self.classes or ()
        digits = name.removeprefix("#")
        number = int(digits) if digits.isdecimal() and len(digits) < 10 else None
        named = names.index(name) if name in names else None
        if number is not None and named not in (None, number):
            raise UserError(
                f"classes: {name!r} is the number of a class and the name of class {named}; write "
                f"'#{number}' or '#{named}'."
            )
        if named is not None:
            return named
        if number is not None:
            return number
        if not names:
            raise UserError(
                f"classes: {name!r} is no number, and the classes of this model have no names."
            )
        raise UserError(f"classes: {name!r} is unknown{nearest(name, names)}")

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        """Return the requested classes as numbers, or the prompts.

        Args:
            wanted: A class number, the name of a class or a prompt for each sample.

        Raises:
            UserError: If nothing is requested, or something that is not a list, or an unknown
                class.
        """
        takes = self.conditioner.takes
        if isinstance(wanted, (str, bytes, Mapping)) or not isinstance(wanted, Iterable):
            raise UserError(f"{takes}: must be a list with one for each sample, got {wanted!r}.")
        listed = list(wanted)
        if not listed:
            raise UserError(f"{takes}: the list is empty; give one for each sample.")
        if takes != "classes":
            return listed
        return [self.class_number(one) if isinstance(one, str) else one for one in listed]

    def sample(
        self,
        wanted: Sequence[Any],
        **options: Any,
    ) -> Tensor:
        """Draw images.

        Args:
            wanted: A class (its number or name) or prompt for each sample.
            **options: See `batches`.

        Returns:
            uint8 [n, 3, H, W] on the CPU.
        """
        return torch.cat(list(self.batches(wanted, **options)))

    def batches(
        self,
        wanted: Sequence[Any],
        *,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
        steps: int = 250,
        cfg_scale: float = 1.0,
        cfg_interval: Sequence[float] = (0.0, 1.0),
        cfg_channels: int | None = None,
        cls_cfg_scale: float | None = None,
        guidance: Mapping[str, Any] | Guidance | None = None,
        noise: Streams | None = None,
        seed: int = 0,
        first: int = 0,
        batch: int = 64,
        precision: str = "fp32",
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """Draw images batch by batch.

        Args:
            wanted: A class (its number or name) or prompt for each sample.
            sampler: A registered name, a config or an object; None for the flow's default.
            steps: Steps of the sampler; an adaptive one chooses its own.
            cfg_scale: Scale of classifier-free guidance; 1 means none.
            cfg_interval: Times at which it is applied, bounds included.
            cfg_channels: How many of the image's channels are guided; None for all.
            cls_cfg_scale: Scale for the streams beside the image (REG); None for `cfg_scale`.
            guidance: Another guidance, a config or an object; replaces the four options above.
            noise: The streams at t = 1 of all samples, {name: [n, ...]}; see `latents`.
            seed: Seed of the noise.
            first: Number of the first sample, for drawing a part of a set.
            batch: Samples per batch.
            precision: "fp32", "bf16" or "fp16", for the backbone.
            progress: Whether to show a progress bar, if the terminal is one.

        Yields:
            uint8 [b, 3, H, W] on the CPU, in the order of `wanted`.

        Raises:
            UserError: For an unknown class, an empty list, a sampler that does not fit the flow, or
                an option out of its range.
            ValueError: If `noise` does not have the shapes of the backbone's streams.
        """
        wanted = self.conditions(wanted)
        positive_int("batch", batch)
        integer("first", first)
        check_kind(noise)
        for name, given in (noise or {}).items():
            if len(given) != len(wanted):
                raise ValueError(f"noise: {name!r} is for {len(given)} samples, not {len(wanted)}.")
        with SamplingBar(len(wanted), shown=progress) as bar:
            for begin in range(0, len(wanted), batch):
                part = wanted[begin : begin + batch]
                own = None
                if noise is not None:
                    own = {name: given[begin : begin + batch] for name, given in noise.items()}
                latents = self.latents(
                    part,
                    noise=own,
                    sampler=sampler,
                    steps=steps,
                    cfg_scale=cfg_scale,
                    cfg_interval=cfg_interval,
                    cfg_channels=cfg_channels,
                    cls_cfg_scale=cls_cfg_scale,
                    guidance=guidance,
                    seed=seed,
                    first=first + begin,
                    precision=precision,
                    watch=bar.watch,
                )
                bar.finish(begin + len(part))
                yield self.decode(latents["image"])

    @torch.no_grad()
    def latents(
        self,
        wanted: Sequence[Any],
        *,
        noise: Streams | None = None,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
        steps: int = 250,
        cfg_scale: float = 1.0,
        cfg_interval: Sequence[float] = (0.0, 1.0),
        cfg_channels: int | None = None,
        cls_cfg_scale: float | None = None,
        guidance: Mapping[str, Any] | Guidance | None = None,
        seed: int = 0,
        first: int = 0,
        precision: str = "fp32",
        watch: Callable[[Prediction, int], Prediction] | None = None,
    ) -> Streams:
        """Draw one batch of all streams at t = 0, before decoding.

        Args:
            wanted: A class (its number or name) or prompt for each of the B samples.
            noise: The streams at t = 1, {name: [B, ...]} float32; by default `start_noise`. What a
                stochastic sampler adds on the way depends on `seed` and `first` in both cases, so
                that passing `start_noise(B, seed=seed, first=first)` changes nothing.
            sampler: See `batches`, as for the options below.
            steps: Steps of the sampler.
            cfg_scale: Scale of classifier-free guidance.
            cfg_interval: Times at which it is applied.
            cfg_channels: How many of the image's channels are guided.
            cls_cfg_scale: Scale for the streams beside the image.
            guidance: Another guidance.
            seed: Seed of the noise.
            first: Number of the first sample.
            precision: "fp32", "bf16" or "fp16".
            watch: Wraps the model, (model, B) -> model, to follow the sampler's calls.

        Returns:
            {name: [B, ...]} on the backbone's device.

        Raises:
            UserError: If the sampler does not fit the flow, or an option is out of its range.
            ValueError: If `noise` does not have the shapes of the backbone's streams.
        """
        device = next(self.backbone.parameters()).device
        wanted = self.conditions(wanted)
        dtype_of("precision", precision)
        positive_int("steps", steps)
        integer("first", first)
        integer("seed", seed, least=-LARGEST_SEED, most=LARGEST_SEED)
        integrator = self.sampler(sampler)
        rule: Guidance = ClassifierFreeGuidance(
            scale=cfg_scale,
            interval=cfg_interval,
            channels=cfg_channels,
            cls_scale=cls_cfg_scale,
        )
        self.check(sampler, cfg_channels, cls_cfg_scale)
        if guidance is not None:
            rule = build(GUIDANCES, guidance, where="guidance")
        count = len(wanted)
        draw = SampleNoise(seed, range(first, first + count))
        start = self._start(draw, device)
        check_kind(noise)
        if noise is not None:
            start = self._given(noise, start)
        cond = self.conditioner.encode(wanted, device)
        model = rule.guide(self.predict, cond, self.conditioner.null(count, device))
        if watch is not None:
            model = watch(model, count)
        with autocast(device, precision):
            return integrator.sample(model, start, steps=steps, path=self.flow.path, noise=draw)

    def start_noise(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
    ) -> Streams:
        """Return the streams at t = 1 that `latents` starts from, {name: [count, ...]}."""
        positive_int("count", count)
        device = next(self.backbone.parameters()).device
        return self._start(SampleNoise(seed, range(first, first + count)), device)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, uint8 [B, 3, H, W] on the CPU."""
        images = self.tokenizer.decode(latent.float())
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _start(self, draw: SampleNoise, device: torch.device) -> Streams:
        """Draw the backbone's streams at t = 1."""
        return {name: draw.draw(shape, device) for name, shape in self.backbone.streams.items()}

    @staticmethod
    def _given(noise: Streams, like: Streams) -> Streams:
        """Return given noise on the right device. Raises ValueError for wrong names or shapes."""
        given = {name: tuple(x.shape) for name, x in noise.items()}
        wanted = {name: tuple(x.shape) for name, x in like.items()}
        if given != wanted:
            raise ValueError(f"noise: must have the shapes {wanted}, got {given}.")
        return {name: noise[name].to(x) for name, x in like.items()}
