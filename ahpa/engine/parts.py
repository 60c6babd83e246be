"""The frozen parts of a training step: tokenizer, conditioner, priors and the averaged backbone.

They live outside the trained model, so that its state dict is exactly what is trained.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import ConfigError, nearest
from ..registry.contracts import (
    Alignment,
    Clean,
    Conditioner,
    Encoded,
    Features,
    LevelSpec,
    Noised,
    Prior,
    Streams,
    TargetView,
    Tokenizer,
)
from ..registry.values import repeat
from .ema import ExponentialMovingAverage

logger = logging.getLogger("ahpa")

LEAST_STD, MOST_STD = 0.25, 4.0  # of a channel of the latents; outside it, a run is warned


class StreamSource(NamedTuple):
    """The vector level of a prior that diffuses beside the image."""

    prior: str
    level: str


class Parts:
    """Everything frozen that a step needs. Not an nn.Module: nothing in it is ever trained.

    Args:
        tokenizer: Makes latents, and the encoder levels that the priors ask it for.
        conditioner: Makes the backbone's condition.
        priors: {name: prior} in the order in which they are computed.
        wanted: {prior: names of the levels that are read}.
        streams: {stream: where it comes from} of the streams beside the image.
        ema: The averaged backbone.

    Attributes:
        check_scale: Whether to look at the scale of the next batch's latents, and to warn.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        conditioner: Conditioner,
        priors: Mapping[str, Prior],
        wanted: Mapping[str, Sequence[str]],
        streams: Mapping[str, StreamSource],
        ema: ExponentialMovingAverage,
    ) -> None:
        self.tokenizer = tokenizer
        self.conditioner = conditioner
        self.priors = dict(priors)
        self.wanted = {name: tuple(levels) for name, levels in wanted.items()}
        self.streams = dict(streams)
        self.ema = ema
        self.device = torch.device("cpu")
        self._verified: set[str] = set()
        self.check_scale = True
        self.freeze()

    def modules(self) -> dict[str, nn.Module]:
        """List the frozen networks by their place in the config."""
        named: dict[str, nn.Module] = {
            "model.tokenizer": self.tokenizer,
            "model.conditioner": self.conditioner,
        }
        named |= {f"model.priors.{name}": prior for name, prior in self.priors.items()}
        return named

    def freeze(self) -> None:
        """Put every part into eval mode and switch its gradients off."""
        for part in self.modules().values():
            part.eval().requires_grad_(False)

    def load(self) -> None:
        """Read the weights of all parts now rather than in the first step.

        Raises:
            UserError: If weights are missing.
        """
        self.tokenizer.load()
        self.conditioner.load()
        for prior in self.priors.values():
            prior.load()
        self.freeze()

    def to(self, device: torch.device) -> "Parts":
        """Move all parts to a device."""
        for part in self.modules().values():
            part.to(device)
        self.ema.to(device)
        self.device = device
        return self

    def refuse_in(self, net: nn.Module) -> None:
        """Check that no parameter or buffer of a frozen part is inside the trained model.

        Raises:
            ConfigError: Naming the part, since it would be trained or saved.
        """
        trained = {id(p) for p in net.parameters()} | {id(b) for b in net.buffers()}
        for place, part in self.modules().items():
            if any(id(tensor) in trained for tensor in [*part.parameters(), *part.buffers()]):
                raise ConfigError(
                    f"{place}: {type(part).__name__} is a frozen part, but its parameters are "
                    "inside the trained model, where the optimiser and checkpoints would take "
                    "them. Do not keep a prior, tokenizer or conditioner as a submodule of an "
                    "alignment or a backbone."
                )

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any], rng: torch.Generator | None) -> Clean:
        """Encode a batch, without gradient.

        Args:
            batch: image uint8 [B, 3, H, W], or stored `latent` {mean, std} [B, C, h, w]; label [B]
                or caption (B strings); optionally stored `features` {prior: {level: tensor}}.
            rng: Generator of the step; the latent is drawn from the posterior with it.
        """
        batch = to_device(batch, self.device)
        images = batch.get("image")
        if images is not None and images.dtype == torch.uint8:
            images = images.float() / 255
        features = dict(batch.get("features", {}))
        encoded = self._encode_images(batch, images, self._tokenizer_levels(features))
        if self.check_scale and encoded.mean is not None:
            warn_of_scale(encoded.mean)
            self.check_scale = False
        clean = Clean(
            streams={"image": encoded.sample(rng)},
            images=images,
            labels=batch.get("label"),
            captions=batch.get("caption"),
            levels=encoded.levels,
            features=features,
            batch=batch,
        )
        return self._add_streams(clean) if self.streams else clean

    def _tokenizer_levels(self, known: Mapping[str, Features]) -> tuple[str, ...]:
        """List the encoder levels that priors with unknown features need, each once."""
        found: dict[str, None] = {}
        for name, prior in self.priors.items():
            if name not in known:
                found |= dict.fromkeys(prior.tokenizer_levels(self.wanted[name]))
        return tuple(found)

    def _encode_images(
        self, batch: Mapping[str, Any], images: Tensor | None, levels: Sequence[str]
    ) -> Encoded:
        if "latent" not in batch:
            assert images is not None, "a batch needs images or latents"
            return self.tokenizer.encode(images, levels)
        stored = Encoded(batch["latent"]["mean"], batch["latent"]["std"], {})
        if levels and images is not None:
            return stored._replace(
                levels=self.tokenizer.encode(images, levels, latent=False).levels
            )
        return stored

    def _add_streams(self, clean: Clean) -> Clean:
        """Compute the streams beside the image from their priors; the features are kept."""
        streams: Streams = dict(clean.streams)
        features = dict(clean.features)
        for stream, (name, level) in self.streams.items():
            if name not in features:
                features[name] = self.priors[name].from_clean(clean, self.wanted[name])
            streams[stream] = features[name][level].float()
        return replace(clean, streams=streams, features=features)

    @torch.no_grad()
    def features(self, view: TargetView) -> dict[str, Features]:
        """Compute the levels of every prior that is read, detached and repeated for the views.

        Returns:
            {prior: {level: tensor}}.

        Raises:
            ConfigError: In the first step, if a level is not what its prior declared.
        """
        found = {}
        for name, prior in self.priors.items():
            levels = self.wanted[name]
            if not levels:
                continue
            given = view.clean.features.get(name)
            features = prior(view, levels) if given is None else given
            features = {level: x.detach() for level, x in features.items()}
            place = f"model.priors.{name}"
            if place not in self._verified:
                verify_features(place, features, prior.levels, levels, view.noised)
                self._verified.add(place)
            found[name] = repeat_views(features, view.noised)
        return found


def wanted_levels(
    priors: Mapping[str, Prior],
    streams: Mapping[str, StreamSource],
    alignments: Iterable[Alignment],
) -> dict[str, tuple[str, ...]]:
    """List the levels of each prior that alignments or streams read, in the prior's order.

    Raises:
        ConfigError: If an alignment reads a prior or a level that does not exist.
    """
    read: dict[str, set[str]] = {name: set() for name in priors}
    for stream in streams.values():
        read[stream.prior].add(stream.level)
    for alignment in alignments:
        for name, levels in alignment.reads.items():
            where = f"model.alignments.{alignment.name}"
            if name not in priors:
                raise ConfigError(f"{where}: no prior is called {name!r}{nearest(name, priors)}")
            for level in levels:
                if level not in priors[name].levels:
                    suggestions = nearest(level, priors[name].levels)
                    raise ConfigError(
                        f"{where}: prior {name!r} has no level {level!r}{suggestions}"
                    )
            read[name] |= set(levels)
    return {
        name: tuple(level for level in prior.levels if level in read[name])
        for name, prior in priors.items()
    }


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of nested dicts to a device; everything else stays unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(part, device) for key, part in value.items()}
    return value


def warn_of_scale(latents: Tensor) -> None:
    """Warn once of latents whose scale is far from that of the noise.

    Args:
        latents: Latents [B, C, h, w] of the first batch, in the diffusion's scale.
    """
    deviation = latents.float().std((0, 2, 3)).cpu()  # [C]
    if deviation.min() >= LEAST_STD and deviation.max() <= MOST_STD:
        return
    shown = ", ".join(f"{value:.3g}" for value in deviation.tolist())
    logger.warning(
        "model.tokenizer: the latents' standard deviation is %s by channel in the first batch, "
        "against 1 of the noise, so t means another signal-to-noise ratio: set model.tokenizer's "
        "mean and std (ahpa latent-statistics measures them).",
        shown,
    )


def repeat_views(features: Features, noised: Noised) -> Features:
    """Repeat features of the images for the views; features of the views stay unchanged."""
    count = len(noised.t)
    return {
        level: x if len(x) == count else repeat(x, noised.views) for level, x in features.items()
    }


def verify_features(
    place: str,
    features: Features,
    declared: Mapping[str, LevelSpec],
    wanted: Sequence[str],
    noised: Noised,
) -> None:
    """Compare what a prior returned with what it declared.

    Args:
        place: The prior's place in the config, for messages.
        features: The levels that were returned.
        declared: The prior's `levels`.
        wanted: Names of the levels that were asked for.
        noised: The noised batch, for the batch size.

    Raises:
        ConfigError: For a missing level, another shape, or values that are not finite.
    """
    views = len(noised.t)
    images = views // noised.views
    for level in wanted:
        if level not in features:
            raise ConfigError(f"{place}: the prior did not return its level {level!r}.")
        spec = declared[level]
        shape = list(features[level].shape)
        dims = 2 if spec.is_vector else 4
        kind = "[B, H, N, N]" if spec.attention else "[B, C]" if spec.is_vector else "[B, C, h, w]"
        if len(shape) != dims or shape[1] != spec.channels or shape[0] not in (images, views):
            raise ConfigError(
                f"{place}: level {level!r} has the shape {shape}; the prior declared {kind} with "
                f"{spec.channels} channels for a batch of {images}. Correct `levels` or what "
                "forward returns."
            )
        if not features[level].isfinite().all():
            raise ConfigError(f"{place}: level {level!r} has values that are not finite.")
