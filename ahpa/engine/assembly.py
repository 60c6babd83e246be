"""From the `model` section of a config to parts that fit: sizes first, then one constructor call.

tokenizer -> backbone -> Geometry -> flow, conditioner, flow loss -> priors -> alignments -> EMA
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..registry import (
    ALIGNMENTS,
    BACKBONES,
    CONDITIONERS,
    FLOW_LOSSES,
    FLOWS,
    PRIORS,
    TOKEN_ROUTINGS,
    TOKENIZERS,
    ConfigError,
    build,
    nearest,
)
from ..registry.contracts import (
    Alignment,
    Backbone,
    Conditioner,
    Flow,
    Geometry,
    Prior,
    Tap,
    Tokenizer,
    TokenRouting,
)
from ..registry.validation import positive_int
from .denoiser import AlignedDenoiser
from .ema import ExponentialMovingAverage
from .parts import Parts, StreamSource, wanted_levels

DEFAULTS: dict[str, Any] = {
    "resolution": 256,
    "flow": {"type": "Flow"},
    "flow_loss": {"type": "FlowMatchingLoss"},
    "conditioner": {"type": "ClassLabels"},
    "priors": {},
    "streams": {},
    "alignments": {},
    "token_routing": None,
    "ema": 0.9999,
    "classes": None,
}
NEEDED = ("tokenizer", "backbone")
GENERATOR_KEYS = ("resolution", "tokenizer", "backbone", "flow", "conditioner", "classes")


class GeneratorParts(NamedTuple):
    """The parts that sampling needs, and their sizes."""

    tokenizer: Tokenizer
    backbone: Backbone
    flow: Flow
    conditioner: Conditioner
    geometry: Geometry
    classes: tuple[str, ...] | None


def with_defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section with the defaults of the keys that it leaves out.

    Raises:
        ConfigError: For an unknown or a missing key, and for a section that is no dict.
    """
    if not isinstance(model, Mapping):
        raise ConfigError(f"model: must be a dict, got {model!r}.")
    valid = (*NEEDED, *DEFAULTS)
    for key in model:
        if key not in valid:
            raise ConfigError(f"model has no option {key!r}{nearest(key, valid)}")
    for key in NEEDED:
        if model.get(key) is None:
            raise ConfigError(f"model needs the option {key!r}.")
    given = {key: value for key, value in model.items() if value is not None}
    for key in ("priors", "streams", "alignments"):
        if not isinstance(given.get(key, {}), Mapping):
            raise ConfigError(f"model.{key}: must be a dict of names, got {given[key]!r}.")
    return {**DEFAULTS, **given}


def build_generator_parts(model: Mapping[str, Any]) -> GeneratorParts:
    """Build what sampling needs from a config's model section; its other keys are ignored.

    Raises:
        ConfigError: For parts that do not fit together.
    """
    chosen = {key: model[key] for key in GENERATOR_KEYS if key in model}
    cfg = with_defaults(chosen)
    tokenizer: Tokenizer = build(TOKENIZERS, cfg["tokenizer"], where="model.tokenizer")
    resolution = check_resolution(cfg["resolution"], tokenizer)
    backbone: Backbone = build(
        BACKBONES,
        cfg["backbone"],
        where="model.backbone",
        input_size=resolution // tokenizer.downsample,
        in_channels=tokenizer.latent_channels,
    )
    geometry = geometry_of(resolution, tokenizer, backbone)
    flow = build(FLOWS, cfg["flow"], where="model.flow", geometry=geometry)
    conditioner: Conditioner = build(
        CONDITIONERS, cfg["conditioner"], where="model.conditioner", geometry=geometry
    )
    if conditioner.takes != backbone.takes:
        raise ConfigError(
            f"model.conditioner: {type(conditioner).__name__} makes conditions of "
            f"{conditioner.takes}, but {type(backbone).__name__} takes {backbone.takes}."
        )
    classes = class_names(cfg["classes"], geometry)
    return GeneratorParts(tokenizer, backbone, flow, conditioner, geometry, classes)


def class_names(classes: Any, geometry: Geometry) -> tuple[str, ...] | None:
    """Return the names of a model's classes in the order of their labels; None if there are none.

    Raises:
        ConfigError: Unless they are different texts, at most one for each label of the backbone.
    """
    if classes is None:
        return None
    listed = isinstance(classes, (list, tuple)) and all(isinstance(x, str) for x in classes)
    if not listed or not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"model.classes: must list different names, got {classes!r:.200}.")
    known = geometry.num_classes
    if known is not None and len(classes) > known:
        raise ConfigError(f"model.classes: {len(classes)} names for a backbone of {known} classes.")
    return tuple(classes)


def check_resolution(resolution: Any, tokenizer: Tokenizer) -> int:
    """Return the resolution if the tokenizer divides it. Raises ConfigError."""
    side = positive_int("model.resolution", resolution)
    if side % tokenizer.downsample:
        below = side - side % tokenizer.downsample
        suggestions = [n for n in (below, below + tokenizer.downsample) if n]
        raise ConfigError(
            f"model.resolution: must be a multiple of the tokenizer's {tokenizer.downsample} "
            f"pixels per latent, got {side}; the nearest are {suggestions}."
        )
    return side


def geometry_of(resolution: int, tokenizer: Tokenizer, backbone: Backbone) -> Geometry:
    """Collect every size that other parts are built from."""
    return Geometry(
        resolution=resolution,
        downsample=tokenizer.downsample,
        tokenizer_levels=dict(tokenizer.levels),
        streams=dict(backbone.streams),
        out_channels=backbone.out_channels,
        grid=backbone.grid,
        prefix=backbone.prefix,
        width=backbone.hidden_size,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        num_classes=backbone.num_classes,
        text_dim=backbone.text_dim,
        pooled_dim=backbone.pooled_dim,
    )


def build_model(model: Mapping[str, Any]) -> AlignedDenoiser:
    """Build the trained model and its frozen parts (`net.parts`) from a config's model section.

    Args:
        model: resolution (pixels of a side), tokenizer, backbone, flow, flow_loss, conditioner: one
            component each; priors, alignments: {name: component}; streams: {name: dict(source,
            level)}, vectors of a prior that diffuse beside the image; token_routing: which tokens
            skip blocks in training, or None; ema: decay per step; classes: their names, which a
            run takes from its data set.

    Raises:
        ConfigError: For a mistake in a part, and for parts that do not fit together.
    """
    cfg = with_defaults(model)
    parts = build_generator_parts(cfg)
    geometry, flow = parts.geometry, parts.flow
    flow_loss = build(
        FLOW_LOSSES, cfg["flow_loss"], where="model.flow_loss", geometry=geometry, flow=flow
    )
    priors: dict[str, Prior] = {
        name: build(PRIORS, prior, where=f"model.priors.{name}", geometry=geometry)
        for name, prior in cfg["priors"].items()
    }
    streams = check_streams(cfg["streams"], geometry, priors)
    levels = {name: prior.levels for name, prior in priors.items()}
    alignments = {
        name: build_alignment(name, alignment, geometry, flow, levels)
        for name, alignment in cfg["alignments"].items()
    }
    check_taps(parts.backbone, priors, alignments)
    token_routing = build_token_routing(cfg["token_routing"], geometry)
    check_plan(parts.backbone, flow, token_routing)
    try:
        ema = ExponentialMovingAverage(parts.backbone, decay=cfg["ema"])
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None
    frozen = Parts(
        tokenizer=parts.tokenizer,
        conditioner=parts.conditioner,
        priors=priors,
        wanted=wanted_levels(priors, streams, alignments.values()),
        streams=streams,
        ema=ema,
    )
    net = AlignedDenoiser(
        geometry=geometry,
        backbone=parts.backbone,
        flow=flow,
        flow_loss=flow_loss,
        alignments=alignments,
        token_routing=token_routing,
        parts=frozen,
    )
    frozen.refuse_in(net)
    return net


def build_alignment(
    name: str,
    cfg: Any,
    geometry: Geometry,
    flow: Flow,
    levels: Mapping[str, Mapping[str, Any]],
) -> Alignment:
    """Build one alignment; `type` may be left out and is then "Alignment"."""
    where = f"model.alignments.{name}"
    if not name or any(mark in name for mark in "./"):
        raise ConfigError(f"{where}: a name must not be empty or contain a dot or a slash.")
    if name == "flow":
        raise ConfigError(f"{where}: the flow loss's terms are called 'flow'; choose another name.")
    if isinstance(cfg, Mapping):
        cfg = {"type": "Alignment", **cfg}
    return build(
        ALIGNMENTS, cfg, where=where, name=name, geometry=geometry, flow=flow, priors=levels
    )


def build_token_routing(cfg: Any, geometry: Geometry) -> TokenRouting | None:
    """Build what chooses the tokens that skip blocks in training; None for None."""
    if cfg is None:
        return None
    return build(TOKEN_ROUTINGS, cfg, where="model.token_routing", geometry=geometry)


def check_plan(backbone: Backbone, flow: Flow, routing: TokenRouting | None) -> None:
    """Check that the backbone can follow the plan of tokens. Raises ConfigError."""
    name = type(backbone).__name__
    if routing is not None and "route" not in backbone.plan_kinds:
        raise ConfigError(f"model.token_routing: {name} cannot let tokens skip blocks.")
    if flow.separate and "groups" not in backbone.plan_kinds:
        raise ConfigError(
            f"model.flow: {type(flow).__name__} lets tokens attend only to their own group, which "
            f"{name} cannot do; set model.flow.separate to False."
        )


def check_streams(
    streams: Mapping[str, Any], geometry: Geometry, priors: Mapping[str, Prior]
) -> dict[str, StreamSource]:
    """Check that each stream beside the image is fed by a vector level of the right width.

    Raises:
        ConfigError: For a missing or superfluous stream, an unknown prior or level, another width.
    """
    needed = [name for name in geometry.streams if name != "image"]
    for name in (*streams, *needed):
        if name not in needed or name not in streams:
            wanted = ", ".join(needed) or "none"
            given = ", ".join(map(str, streams)) or "none"
            raise ConfigError(
                "model.streams: must name the streams that the backbone diffuses beside the image "
                f"({wanted}), got {given}."
            )
    return {
        name: check_stream(name, cfg, geometry.streams[name], priors)
        for name, cfg in streams.items()
    }


def check_stream(
    name: str, cfg: Any, shape: tuple[int, ...], priors: Mapping[str, Prior]
) -> StreamSource:
    """Check one stream's dict(source, level) against the prior's levels. Raises ConfigError."""
    where = f"model.streams.{name}"
    if not isinstance(cfg, Mapping) or set(cfg) != {"source", "level"}:
        raise ConfigError(f"{where}: must be dict(source=PRIOR, level=LEVEL), got {cfg!r}.")
    source, level = cfg["source"], cfg["level"]
    if source not in priors:
        raise ConfigError(f"{where}.source: no prior is called {source!r}{nearest(source, priors)}")
    levels = priors[source].levels
    if level not in levels:
        raise ConfigError(
            f"{where}.level: the prior has no level {level!r}{nearest(level, levels)}"
        )
    spec = levels[level]
    if not spec.is_vector or shape != (spec.channels,):
        kind = "a vector" if spec.is_vector else "not a vector"
        raise ConfigError(
            f"{where}: the backbone takes a vector of {shape[0]} channels, but the level {level!r} "
            f"is {kind} of {spec.channels} channels."
        )
    return StreamSource(source, level)


def check_taps(
    backbone: Backbone, priors: Mapping[str, Prior], alignments: Mapping[str, Alignment]
) -> None:
    """Check that every requested tap exists. Raises ConfigError that names who asked for it."""
    asked: list[tuple[str, frozenset[Tap]]] = [
        *((f"model.alignments.{name}", alignment.taps) for name, alignment in alignments.items()),
        *((f"model.priors.{name}", prior.taps) for name, prior in priors.items()),
    ]
    for where, taps in asked:
        for tap in sorted(taps):
            if not 1 <= tap.block <= backbone.depth:
                raise ConfigError(
                    f"{where}: block {tap.block} does not exist; blocks are 1..{backbone.depth}."
                )
            if tap.kind not in backbone.tap_kinds:
                raise ConfigError(
                    f"{where}: {type(backbone).__name__} has no taps of the kind {tap.kind!r}"
                    f"{nearest(tap.kind, backbone.tap_kinds)}"
                )
