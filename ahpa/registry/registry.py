"""The registry class and `build`: from `dict(type='Name', option=value)` to an object, with errors for the reader.

It is mmengine's Registry with two changes: a name must be registered (mmengine would import any dotted path, so that
`type='os.system'` ran), and unknown names or options are refused with the nearest valid ones.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry

from . import plugins
from .errors import ConfigError, nearest


def _locate(where: str) -> str:
    return f"{where}: " if where else ""


class ComponentRegistry(Registry):
    """Components of one kind, by name; `locations` are imported when the first one is asked for."""

    def names(self) -> list[str]:
        """All names that `get` would find, mmengine's own of this kind included."""
        self.import_from_location()
        plugins.load()
        registry, found = self, set()
        while registry is not None:
            found |= set(registry.module_dict)
            registry = registry.parent
        return sorted(found)

    def get(self, key: str) -> Any:
        """The component registered as `key`; ConfigError (nearest names, failed plugins) where there is none."""
        if not isinstance(key, str):
            raise ConfigError(f"a {self.name}'s type must be a name, got {key!r}.")
        self.import_from_location()
        name = key.removeprefix(f"{self.scope}.")
        found = self._find(name)
        if found is None:
            plugins.load()
            found = self._find(name)
        if found is not None:
            return found
        raise ConfigError(f"no {self.name} is called {key!r}{nearest(key, self.names())}{plugins.failures()}")

    def _find(self, name):
        registry = self
        while registry is not None:
            if name in registry.module_dict:
                return registry.module_dict[name]
            registry = registry.parent
        return None

    def build(self, cfg: Mapping, *args, **derived) -> Any:  # mmengine's Runner calls it with default_args
        if "default_args" in derived:
            derived = {**(derived.pop("default_args") or {}), **derived}
        return build(self, cfg, **{key: value for key, value in derived.items() if key not in cfg})


def parameters(component: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keyword parameters of a class or function, and whether it takes any others.

    A class that passes `**options` on to its base class takes its base's parameters too.
    """
    found: dict[str, inspect.Parameter] = {}
    filled = False  # a class that passes *args on may fill its base's parameters by position
    sources = [component]
    if inspect.isclass(component):
        sources = [vars(cls)["__init__"] for cls in component.__mro__ if "__init__" in vars(cls)]
    for source in sources:
        try:
            signature = inspect.signature(source)
        except ValueError:
            return found, True
        kinds = {p.kind for p in signature.parameters.values()}
        for name, parameter in list(signature.parameters.items())[inspect.isclass(component) :]:  # without `self`
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                found.setdefault(name, parameter.replace(default=None) if filled else parameter)
        filled = filled or inspect.Parameter.VAR_POSITIONAL in kinds
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return found, False
        if source is object.__init__:
            return found, False
    return found, not inspect.isclass(component)


def check(registry: ComponentRegistry, cfg: Any, *, where: str = "", derived: tuple[str, ...] = ()) -> Any:
    """Verifies the type and the option names of `cfg` without building it -> the class or function of that name.

    `derived` names what the builder passes itself. Raises ConfigError with `where` (such as `model.backbone`).
    """
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise ConfigError(f"{_locate(where)}a {registry.name} is a dict with a 'type', got {cfg!r}.")
    try:
        component = registry.get(cfg["type"])
    except ConfigError as error:
        raise ConfigError(f"{_locate(where + '.type' if where else '')}{error}") from None
    known, open_ended = parameters(component)
    for key in cfg:
        if key == "type":
            continue
        if key in derived:
            raise ConfigError(f"{_locate(where)}{key!r} is derived from the other parts; remove it from the config.")
        if key not in known and not open_ended:
            valid = [name for name in known if name not in derived]
            raise ConfigError(f"{_locate(where)}{cfg['type']} has no option {key!r}{nearest(key, valid)}")
    empty = inspect.Parameter.empty
    for name, parameter in known.items():
        if parameter.default is empty and name not in cfg and name not in derived:
            raise ConfigError(f"{_locate(where)}{cfg['type']} needs the option {name!r}.")
    return component


def build(registry: ComponentRegistry, cfg: Any, *, where: str = "", **derived) -> Any:
    """Builds `dict(type=..., option=...)`, with the values in `derived` that the caller knows from the other parts.

    An object that is no dict is taken as built already. A ValueError of a constructor becomes a ConfigError that
    begins with `where`, the place in the config.
    """
    if not isinstance(cfg, Mapping):
        if isinstance(cfg, (str, int, float, list, tuple, type(None))):
            raise ConfigError(f"{_locate(where)}a {registry.name} is a dict with a 'type', got {cfg!r}.")
        return cfg
    component = check(registry, cfg, where=where, derived=tuple(derived))
    options = {key: value for key, value in cfg.items() if key != "type"}
    try:
        return component(**options, **derived)
    except ValueError as error:
        if isinstance(error, ConfigError) and where and str(error).startswith(where):
            raise
        raise ConfigError(f"{_locate(where)}{error}") from error
