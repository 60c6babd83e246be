"""Registries, contracts and plugin discovery: what every other room builds on.

Each registry imports the package of its components when the first of them is asked for; mmengine
finds the registries of the scope `ahpa` here. `ahpa list` prints everything that is registered.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

from .errors import ConfigError, UserError, nearest
from .registry import ComponentRegistry, build, check

__all__ = [
    "ALIGNMENTS",
    "ALL",
    "BACKBONES",
    "CONDITIONERS",
    "DATASETS",
    "EXTRACTORS",
    "FLOWS",
    "FLOW_LOSSES",
    "GUIDANCES",
    "HOOKS",
    "METRICS",
    "OPTIMIZERS",
    "PAIR_LOSSES",
    "PARAM_SCHEDULERS",
    "PATHS",
    "PRIORS",
    "PROJECTORS",
    "REGULARISERS",
    "ROUTERS",
    "SAMPLERS",
    "SCHEDULES",
    "TEXT_ENCODERS",
    "TIMESTEPS",
    "TIME_ENCODINGS",
    "TOKENIZERS",
    "TOKEN_ROUTINGS",
    "VISBACKENDS",
    "VISUALIZERS",
    "ComponentRegistry",
    "ConfigError",
    "UserError",
    "build",
    "check",
    "nearest",
]


def _registry(name: str, *rooms: str, parent: Registry | None = None) -> ComponentRegistry:
    locations = [f"ahpa.{room}" for room in rooms]
    return ComponentRegistry(name, parent=parent, scope="ahpa", locations=locations)


TOKENIZERS = _registry("tokenizer", "tokenizers")
BACKBONES = _registry("backbone", "backbones")
TOKEN_ROUTINGS = _registry("token routing", "backbones")
CONDITIONERS = _registry("conditioner", "conditioning")
TEXT_ENCODERS = _registry("text encoder", "conditioning")
FLOWS = _registry("flow", "flow")
PATHS = _registry("path", "flow")
TIMESTEPS = _registry("timestep distribution", "flow")
SAMPLERS = _registry("sampler", "sampling")
GUIDANCES = _registry("guidance", "sampling")
PRIORS = _registry("prior", "priors")
ROUTERS = _registry("router", "routers")
TIME_ENCODINGS = _registry("time encoding", "routers")
FLOW_LOSSES = _registry("flow loss", "losses")
PAIR_LOSSES = _registry("pair loss", "losses")
REGULARISERS = _registry("regulariser", "losses")
ALIGNMENTS = _registry("alignment", "alignment")
PROJECTORS = _registry("projector", "alignment")
SCHEDULES = _registry("schedule", "alignment")
DATASETS = _registry("dataset", "data")
EXTRACTORS = _registry("feature extractor", "evaluation")
METRICS = _registry("metric", "evaluation")

# Children of mmengine's own registries: its components are found by name too.
HOOKS = _registry("hook", "engine", "analysis", parent=mmengine_registry.HOOKS)
OPTIMIZERS = _registry("optimizer", "engine", parent=mmengine_registry.OPTIMIZERS)
PARAM_SCHEDULERS = _registry("param scheduler", "engine", parent=mmengine_registry.PARAM_SCHEDULERS)
VISUALIZERS = _registry("visualizer", "engine", parent=mmengine_registry.VISUALIZERS)
VISBACKENDS = _registry("visualization back-end", "engine", parent=mmengine_registry.VISBACKENDS)

ALL = {
    name: value for name, value in list(globals().items()) if isinstance(value, ComponentRegistry)
}
