"""Registries, contracts and plugin discovery: what every other room builds on.

Each registry imports the modules of its components when the first of them is asked for; mmengine
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


def _registry(name: str, *modules: str, parent: Registry | None = None) -> ComponentRegistry:
    return ComponentRegistry(name, parent=parent, scope="ahpa", locations=list(modules))


TOKENIZERS = _registry("tokenizer", "ahpa.tokenizers")
BACKBONES = _registry("backbone", "ahpa.backbones")
TOKEN_ROUTINGS = _registry("token routing", "ahpa.backbones")
CONDITIONERS = _registry("conditioner", "ahpa.conditioning")
TEXT_ENCODERS = _registry("text encoder", "ahpa.conditioning")
FLOWS = _registry("flow", "ahpa.flow")
PATHS = _registry("path", "ahpa.flow")
TIMESTEPS = _registry("timestep distribution", "ahpa.flow")
SAMPLERS = _registry("sampler", "ahpa.sampling")
GUIDANCES = _registry("guidance", "ahpa.sampling")
PRIORS = _registry("prior", "ahpa.priors")
ROUTERS = _registry("router", "ahpa.routers")
TIME_ENCODINGS = _registry("time encoding", "ahpa.routers")
FLOW_LOSSES = _registry("flow loss", "ahpa.losses")
PAIR_LOSSES = _registry("pair loss", "ahpa.losses")
REGULARISERS = _registry("regulariser", "ahpa.losses")
ALIGNMENTS = _registry("alignment", "ahpa.alignment")
PROJECTORS = _registry("projector", "ahpa.alignment")
SCHEDULES = _registry("schedule", "ahpa.alignment")
DATASETS = _registry("dataset", "ahpa.data")
EXTRACTORS = _registry("feature extractor", "ahpa.evaluation")
METRICS = _registry("metric", "ahpa.evaluation")

# Children of mmengine's own registries: its components are found by name too.
HOOKS = _registry(
    "hook",
    "ahpa.engine.hooks",
    "ahpa.analysis.policy",
    "ahpa.analysis.evaluation_hook",
    parent=mmengine_registry.HOOKS,
)
OPTIMIZERS = _registry("optimizer", "mmengine.optim", parent=mmengine_registry.OPTIMIZERS)
PARAM_SCHEDULERS = _registry(
    "param scheduler", "mmengine.optim", parent=mmengine_registry.PARAM_SCHEDULERS
)
VISUALIZERS = _registry(
    "visualizer", "ahpa.engine.visualizer", parent=mmengine_registry.VISUALIZERS
)
VISBACKENDS = _registry(
    "visualization back-end", "mmengine.visualization", parent=mmengine_registry.VISBACKENDS
)

ALL = {
    name: value for name, value in list(globals().items()) if isinstance(value, ComponentRegistry)
}
