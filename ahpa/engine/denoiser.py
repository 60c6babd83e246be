"""AlignedDenoiser: a diffusion transformer trained while its blocks are pulled towards targets. The only orchestration.

`loss` reads like AHPA's Figure 3; every part in it comes from a registry, and no method is a special case. The frozen
parts (tokenizer, priors) and the EMA are held outside the parameter list and the state dict.
"""

import copy
from collections.abc import Mapping

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..registry import (
    ALIGNMENTS,
    AUTOENCODERS,
    BACKBONES,
    CONDITIONERS,
    FLOW_LOSSES,
    FLOWS,
    MODELS,
    PRIORS,
    ConfigError,
    build,
    check,
    nearest,
)
from ..registry.contracts import Encoded, Features, HoldsFrozen, Step, Streams
from ..registry.registry import parameters

FLOW, FLOW_LOSS, CONDITIONER = dict(type="Flow"), dict(type="FlowMatchingLoss"), dict(type="ClassLabels")


def generator_parts(*, resolution: int, tokenizer, backbone, flow=None, conditioner=None) -> dict:
    """The parts that sampling needs, with the sizes derived: tokenizer -> backbone -> conditioner.

    Raises ConfigError where the resolution does not fit the tokenizer.
    """
    tokenizer = build(AUTOENCODERS, tokenizer, where="model.tokenizer")
    if resolution < tokenizer.downsample or resolution % tokenizer.downsample:
        raise ConfigError(f"model.resolution: {resolution} is no multiple of the tokenizer's {tokenizer.downsample}.")
    sizes = dict(input_size=resolution // tokenizer.downsample, in_channels=tokenizer.latent_channels)
    backbone = build(BACKBONES, backbone, where="model.backbone", **sizes)
    conditioner = conditioner or CONDITIONER
    return dict(
        tokenizer=tokenizer,
        backbone=backbone,
        flow=build(FLOWS, flow or FLOW, where="model.flow"),
        conditioner=build(CONDITIONERS, conditioner, where="model.conditioner", backbone=backbone),
    )


def repeat(value, views: int):
    """A tensor, or a tuple of tensors or None, once for each view along the batch."""
    if views == 1 or value is None:
        return value
    return (
        torch.cat([value] * views)
        if isinstance(value, Tensor)
        else type(value)(*(repeat(part, views) for part in value))
    )


def per_view(features: Features, noisy) -> Features:
    """Levels of the images, repeated for the views of each; what was made of the views themselves stays."""
    return {name: x if len(x) == len(noisy.t) else repeat(x, noisy.views) for name, x in features.items()}


@MODELS.register_module()
class AlignedDenoiser(HoldsFrozen, BaseModel):
    """A backbone, its flow and any number of alignments of its blocks with priors.

    resolution: pixels of a side. tokenizer, backbone, flow, conditioner, flow_loss: one component each.
    priors: {name: prior}; streams: {name: dict(source, level)}, vectors of a prior that diffuse beside the image;
    alignments: {name: alignment} whose `source` names a prior. ema: decay per optimiser step.
    Raises ConfigError for parts that do not fit together.
    """

    def __init__(self, *, resolution: int = 256, tokenizer, backbone, flow=None, flow_loss=None, conditioner=None,
                 priors: Mapping | None = None, streams: Mapping | None = None, alignments: Mapping | None = None,
                 ema: float = 0.9999):  # fmt: skip
        super().__init__()
        if not 0 <= ema < 1:
            raise ConfigError(f"model.ema: the decay must be in [0, 1), got {ema}.")
        parts = generator_parts(
            resolution=resolution, tokenizer=tokenizer, backbone=backbone, flow=flow, conditioner=conditioner
        )
        self.resolution, self.ema_decay = resolution, ema
        self.tokenizer, self.backbone, self.conditioner = parts["tokenizer"], parts["backbone"], parts["conditioner"]
        self.flow = parts["flow"]
        self.flow_loss = build(FLOW_LOSSES, flow_loss or FLOW_LOSS, where="model.flow_loss")
        if hasattr(self.flow_loss, "bind"):
            self.flow_loss.bind(flow=self.flow, backbone=self.backbone)
        self.priors = nn.ModuleDict()
        for name, cfg in (priors or {}).items():
            self.priors[name] = build(PRIORS, cfg, where=f"model.priors.{name}")
            self.priors[name].bind(tokenizer=self.tokenizer, backbone=self.backbone)
        self.streams = self._check_streams(streams or {})
        self.alignments = nn.ModuleDict()
        for name, cfg in (alignments or {}).items():
            self.alignments[name] = self._build_alignment(name, cfg)
        self._request_levels()
        self.taps = frozenset(alignment.tap for alignment in self.alignments.values())
        self.hold(ema=copy.deepcopy(self.backbone).float())

    def _check_streams(self, streams) -> dict[str, tuple[str, str]]:
        """{stream: (prior, level)} of what diffuses beside the image; ConfigError unless it fits the backbone."""
        own = {name: shape for name, shape in self.backbone.streams.items() if name != "image"}
        for name in (*streams, *own):
            if name not in own or name not in streams:
                raise ConfigError(f"model.streams: the backbone diffuses {', '.join(self.backbone.streams)}; besides the "
                                  f"image model.streams names {', '.join(streams) or 'nothing'}.")  # fmt: skip
            source, level = (streams[name].get(key) for key in ("source", "level"))
            if source not in self.priors:
                raise ConfigError(
                    f"model.streams.{name}.source: no prior is called {source!r}{nearest(source, self.priors)}"
                )
            spec = self.priors[source].spec(self.backbone)
            if level not in spec:
                raise ConfigError(f"model.streams.{name}.level: the prior has no {level!r}{nearest(level, spec)}")
            channels, stride = spec[level]
            if stride or own[name] != (channels,):
                raise ConfigError(f"model.streams.{name}: the backbone takes a vector of {own[name][0]}, the level "
                                  f"{level!r} is {'a map' if stride else 'a vector'} of {channels}.")  # fmt: skip
        return {name: (stream["source"], stream["level"]) for name, stream in streams.items()}

    def _build_alignment(self, name, cfg):
        where = f"model.alignments.{name}"
        cfg = {"type": "Alignment", **cfg} if isinstance(cfg, Mapping) else cfg
        derived = dict(name=name, backbone=self.backbone)
        known, _ = parameters(check(ALIGNMENTS, cfg, where=where, derived=("spec", "flow", *derived)))
        if "flow" in known:
            derived["flow"] = self.flow
        if "source" in known:
            source = cfg.get("source")
            if source not in self.priors:
                raise ConfigError(f"{where}.source: no prior is called {source!r}{nearest(source, self.priors)}")
            derived["spec"] = self.priors[source].spec(self.backbone)
        return build(ALIGNMENTS, cfg, where=where, **derived)

    def _request_levels(self):
        """Tells each prior which levels are read, and collects those that the tokenizer's own pass shall yield."""
        shared = []
        for name, prior in self.priors.items():
            read = {level for a in self.alignments.values() if a.source == name for level in a.levels}
            read |= {level for source, level in self.streams.values() if source == name}
            prior.request([level for level in prior.spec(self.backbone) if level in read])
            shared += [level for level in getattr(prior, "shared_levels", ()) if level not in shared]
        self.shared_levels = tuple(shared)

    @property
    def ema(self) -> nn.Module:
        """The averaged backbone, float32."""
        return self.held["ema"]

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema <- decay * ema + (1 - decay) * weights: once per optimiser step."""
        if "ema_lists" not in self.__dict__:
            pairs = list(zip(self.ema.parameters(), self.backbone.parameters(), strict=True))
            self.__dict__["ema_lists"] = ([a.data for a, _ in pairs], [b.data for _, b in pairs])
        average, weights = self.__dict__["ema_lists"]
        torch._foreach_lerp_(average, weights, 1 - self.ema_decay)

    def _apply(self, fn, recurse=True):
        self.__dict__.pop("ema_lists", None)
        return super()._apply(fn, recurse)

    def load_weights(self) -> None:
        """Reads the frozen networks' weights now (UserError if they are not there) and not in the first step."""
        for part in (self.tokenizer, self.conditioner, *self.priors.values()):
            if hasattr(part, "load"):
                part.load()

    def forward(self, mode: str = "loss", **batch) -> dict[str, Tensor]:
        if mode != "loss":
            raise ValueError(f"AlignedDenoiser only computes mode='loss', got {mode!r}; see ahpa.engine.inference")
        return self.loss(batch)

    def loss(self, batch: Mapping) -> dict[str, Tensor]:
        """batch: image uint8 [B, 3, H, W] (or `latent` {mean, std} [B, C, h, w] with `features`), label [B] or caption
        (B strings), `noise_seed`, which alone determines t, noise and dropout -> {'loss_*': scalar, diagnostic: scalar}.
        """
        step = self.begin(batch)
        data = self.encode(step)  # {'image': [B, C, h, w]}, and other streams
        step.noisy = self.flow.sample(data, step.generator)
        step.cond = repeat(self.conditioner(step), step.noisy.views)
        step.out = self.backbone(step.noisy.x, step.noisy.t, step.cond, taps=self.taps)
        losses = self.flow_loss(step)
        for name in self.priors:
            step.features[name] = per_view(self.features(step, name), step.noisy)
        for alignment in self.alignments.values():
            losses |= alignment(step)
        return losses

    def begin(self, batch: Mapping) -> Step:
        """The step before anything is computed: images in [0, 1] and the step's own random stream."""
        images, seed = batch.get("image"), batch.get("noise_seed")
        device = next(self.backbone.parameters()).device
        generator = None
        if seed is not None and device.type != "meta":
            generator = torch.Generator(device).manual_seed(int(seed))
        return Step(
            batch=batch,
            images=None if images is None else images.float() / 255 if images.dtype == torch.uint8 else images,
            generator=generator,
            diagnose=bool(batch.get("diagnose", False)),
            iteration=int(batch.get("iteration", 0)),
            progress=float(batch.get("progress", 0.0)),
            flow=self.flow,
            ema=self.ema,
            features=dict(batch.get("features", {})),
        )

    def encode(self, step: Step) -> Streams:
        """The latent streams; one pass of the tokenizer yields the shared taps too."""
        if "latent" in step.batch:
            step.encoded = Encoded(step.batch["latent"]["mean"], step.batch["latent"]["std"], {})
        else:
            step.encoded = self.tokenizer.encode(step.images, self.shared_levels)
        data = {"image": step.encoded.sample(step.generator)}
        return data | {
            name: self.features(step, source)[level].float() for name, (source, level) in self.streams.items()
        }

    def features(self, step: Step, name: str):
        """A prior's levels for this step, computed once."""
        if name not in step.features:
            step.features[name] = self.priors[name](step)
        return step.features[name]
