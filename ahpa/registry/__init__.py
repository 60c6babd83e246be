"""Floor 0: the registries, the contracts (`ahpa.registry.contracts`) and plugin discovery. Needs no torch to import.

mmengine looks here for the registries of the scope `ahpa`. Each registry imports the package of its components when
the first of them is asked for. `python -m ahpa.registry` lists everything.
"""

from mmengine import registry as _mm

from .errors import ConfigError, UserError, nearest
from .registry import ComponentRegistry, build, check

__all__ = ["ComponentRegistry", "ConfigError", "UserError", "build", "check", "nearest"]


def _own(name, *locations):
    return ComponentRegistry(name, scope="ahpa", locations=[f"ahpa.{place}" for place in locations])


def _of_mmengine(name, parent, *locations):
    return ComponentRegistry(name, parent=parent, scope="ahpa", locations=[f"ahpa.{place}" for place in locations])


AUTOENCODERS = _own("autoencoder", "priors")
PRIORS = _own("prior", "priors")
ROUTERS = _own("router", "routers")
TIME_ENCODINGS = _own("time encoding", "routers")
BACKBONES = _own("backbone", "backbones")
CONDITIONERS = _own("conditioner", "backbones")
TEXT_ENCODERS = _own("text encoder", "backbones")
FLOWS = _own("flow", "flow")
PATHS = _own("path", "flow")
TIMESTEPS = _own("timestep distribution", "flow")
SAMPLERS = _own("sampler", "flow")
GUIDANCES = _own("guidance", "flow")
PROJECTORS = _own("projector", "losses")
LOSSES = _own("pair loss", "losses")
FLOW_LOSSES = _own("flow loss", "losses")
SCHEDULES = _own("schedule", "losses")
ALIGNMENTS = _own("alignment", "losses")
DATASETS = _own("dataset", "data")
LOADERS = _own("data loader", "data")

MODELS = _of_mmengine("model", _mm.MODELS, "engine")
MODEL_WRAPPERS = _of_mmengine("model wrapper", _mm.MODEL_WRAPPERS, "engine")
HOOKS = _of_mmengine("hook", _mm.HOOKS, "engine", "analysis")
LOOPS = _of_mmengine("loop", _mm.LOOPS, "engine")
RUNNERS = _of_mmengine("runner", _mm.RUNNERS, "engine")
OPTIMIZERS = _of_mmengine("optimizer", _mm.OPTIMIZERS, "engine")
OPTIM_WRAPPERS = _of_mmengine("optim wrapper", _mm.OPTIM_WRAPPERS, "engine")
PARAM_SCHEDULERS = _of_mmengine("param scheduler", _mm.PARAM_SCHEDULERS, "engine")
VISUALIZERS = _of_mmengine("visualizer", _mm.VISUALIZERS, "engine")
VISBACKENDS = _of_mmengine("visualization back-end", _mm.VISBACKENDS, "engine")

ALL = {name: value for name, value in list(globals().items()) if isinstance(value, ComponentRegistry)}
__all__ += ["ALL", *ALL]
