"""The noising of a batch for continuous paths: the one place where t and the noise are drawn."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import FLOWS, PATHS, TIMESTEPS, ConfigError, build
from ..registry import validation as valid
from ..registry.contracts import Flow, Geometry, Noised, Path, Streams, Timesteps
from ..registry.numerics import per_pixel
from .paths import Interpolant

PREDICTIONS = ("velocity", "data", "noise")


class NoisingFlow(Flow):
    """Base of the flows: noises every stream on one path, at times that a subclass draws.

    Args:
        geometry: Sizes of the model.
        path: The path between data and noise.
        views: How often each image of a batch is noised, each time with a time and noise of its
            own (DUPA): the whole batch once, then once more, and so on.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Path,
        views: int,
    ) -> None:
        super().__init__(geometry=geometry)
        self.path = path
        self.views = valid.positive_int("views", views)

    @abstractmethod
    def times(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times in [0, 1], [count]; or [count, N], one for each grid token."""

    def times_and_groups(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw times, and the group ids [count, N] of tokens if groups have times of their own."""
        return self.times(count, rng, device), None

    def spread(self, t: Tensor, x: Tensor) -> Tensor:
        """Spread one time per token over the pixels of x [B, C, H, W]; [B] is unchanged."""
        return per_pixel(t, self.geometry.grid, x)

    def targets(
        self,
        x: Streams,
        t: Tensor,
        data: Streams,
        noise: Streams,
        mixed: Streams,
    ) -> Streams:
        """Return what the network's prediction is compared with.

        Args:
            x: The noised streams.
            t: Times as `times` draws them.
            data: The clean streams.
            noise: The noise of each stream.
            mixed: The targets that the path gives; returned unchanged by default.
        """
        return mixed

    def sample(
        self,
        streams: Streams,
        rng: torch.Generator | None,
    ) -> Noised:
        """Noise the clean streams, in float32 and at the same times for all streams.

        Args:
            streams: {name: [B, ...]}; with views, B is multiplied by their number.
            rng: The only source of randomness: first the times are drawn, then the noise of each
                stream in turn.
        """
        data = {name: torch.cat([x0.float()] * self.views) for name, x0 in streams.items()}
        first = next(iter(data.values()))
        t, groups = self.times_and_groups(len(first), rng, first.device)
        x: Streams = {}
        mixed: Streams = {}
        noise: Streams = {}
        for name, x0 in data.items():
            eps = torch.randn(x0.shape, generator=rng, device=x0.device, dtype=x0.dtype)
            x[name], mixed[name] = self.path.mix(x0, eps, self.spread(t, x0))
            noise[name] = eps
        target = self.targets(x, t, data, noise, mixed)
        return Noised(
            x,
            t,
            target,
            data,
            noise,
            path=self.path,
            views=self.views,
            groups=groups,
            separate=self.separate,
        )


@FLOWS.register_module(name="Flow")
class ContinuousFlow(NoisingFlow):
    """A continuous path and a distribution of t, the same t for all streams (SiT, REPA).

    The loss and the samplers always see a velocity. A network that predicts the data or the noise
    is converted by `to_target`, whose denominator has a floor at `least_t` (JiT,
    arXiv:2511.13720, and RAE); the target is converted in the same way, so that the exact
    prediction has the loss 0 at every time.

    Args:
        geometry: Sizes of the model.
        path: A path with a velocity, a config or an object; LinearPath by default.
        timesteps: The distribution of t, a config or an object; UniformTimesteps by default.
        views: How often each image of a batch is noised.
        prediction: What the network predicts: "velocity", "data" or "noise".
        least_t: Distance from the singular end (t = 0 for data, t = 1 for noise) below which the
            denominator of the conversion stays constant, in (0, 0.5]. No effect on a velocity.

    Raises:
        ConfigError: If the path has no velocity, or no derivatives where a conversion needs them.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        path: Mapping[str, Any] | Path | None = None,
        timesteps: Mapping[str, Any] | Timesteps | None = None,
        views: int = 1,
        prediction: str = "velocity",
        least_t: float = 0.05,
    ) -> None:
        path = dict(type="LinearPath") if path is None else path
        built: Path = build(PATHS, path, where="path")
        super().__init__(geometry=geometry, path=built, views=views)
        if built.predicts != "velocity":
            name = type(built).__name__
            raise ConfigError(f"path: Flow needs a path with a velocity; {name} fits DiscreteFlow.")
        timesteps = dict(type="UniformTimesteps") if timesteps is None else timesteps
        self.timesteps: Timesteps = build(TIMESTEPS, timesteps, where="timesteps")
        self.prediction = valid.choice("prediction", prediction, PREDICTIONS)
        self.least_t = valid.number("least_t", valid.positive("least_t", least_t), most=0.5)
        if prediction != "velocity":
            self._interpolant()

    def times(
        self,
        count: int,
        rng: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Draw times [count] from the distribution of t."""
        return self.timesteps.sample(count, rng, device)

    def targets(
        self,
        x: Streams,
        t: Tensor,
        data: Streams,
        noise: Streams,
        mixed: Streams,
    ) -> Streams:
        """Return the velocity; from the exact data or noise if the network predicts that."""
        exact = {"velocity": mixed, "data": data, "noise": noise}
        return self.to_target(exact[self.prediction], x, t)

    def to_target(
        self,
        pred: Streams,
        x: Streams,
        t: Tensor,
    ) -> Streams:
        """Convert the network's output at x_t into a velocity; identity for `velocity`.

        Args:
            pred: {stream: [B, ...]}, each shaped as x.
            x: The noised streams.
            t: Times, 0-d, [B] or as `times` draws them.

        Raises:
            ValueError: If a prediction to be converted is not shaped as its stream.
        """
        if self.prediction == "velocity":
            return pred
        path = self._interpolant()
        convert = (
            path.velocity_from_noise if self.prediction == "noise" else path.velocity_from_data
        )
        velocity: Streams = {}
        for name, value in pred.items():
            if value.shape != x[name].shape:
                shapes = f"got {tuple(value.shape)} for {tuple(x[name].shape)}"
                raise ValueError(f"the prediction must be shaped as its stream {name!r}, {shapes}.")
            velocity[name] = convert(x[name], value, self.spread(t, x[name]), self.least_t)
        return velocity

    def _interpolant(self) -> Interpolant:
        """Return the path if it has derivatives. Raises ConfigError otherwise."""
        if isinstance(self.path, Interpolant):
            return self.path
        raise ConfigError(
            f"prediction: {self.prediction!r} needs a path with alpha, sigma and their derivatives "
            f"(an Interpolant), got {type(self.path).__name__}."
        )
