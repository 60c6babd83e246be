"""From `dict(type='Name', option=value)` to an object, with errors for the reader.

The registry is mmengine's with two changes: a name must be registered (mmengine imports any dotted
path, so that `type='os.system'` runs), and unknown names and options are refused with suggestions.
Options are checked against the constructor's annotations (`annotations.py`) before it is called.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.registry import Registry

from . import plugins
from .annotations import annotation_of, check_option, says_nothing
from .errors import ConfigError, article, nearest

FOREIGN = ("mmengine", "torch")  # whose classes know nothing of our errors


class ComponentRegistry(Registry):
    """Components of one kind by name; `locations` are imported when the first is asked for."""

    def names(self) -> list[str]:
        """List all names that `get` finds, including mmengine's own components of this kind."""
        self.import_from_location()
        plugins.load()
        found: set[str] = set()
        registry: Registry | None = self
        while registry is not None:
            found |= set(registry.module_dict)
            registry = registry.parent
        return sorted(found)

    def get(self, key: str) -> Any:
        """Return the component registered as `key`.

        Raises:
            ConfigError: If there is none; with the nearest names and the plugins that failed.
        """
        if not isinstance(key, str):
            raise ConfigError(f"the type of {article(self.name)} must be a name, got {key!r}.")
        self.import_from_location()
        name = key.removeprefix(f"{self.scope}.")
        found = self._find(name)
        if found is None:
            plugins.load()
            found = self._find(name)
        if found is not None:
            return found
        suggestions = nearest(key, self.names())
        raise ConfigError(f"no {self.name} is called {key!r}{suggestions}{plugins.failures()}")

    def _find(self, name: str) -> Any:
        registry: Registry | None = self
        while registry is not None:
            if name in registry.module_dict:
                return registry.module_dict[name]
            registry = registry.parent
        return None

    def build(self, cfg: Mapping[str, Any], *args: Any, **derived: Any) -> Any:
        """Build a component the way mmengine's Runner asks for it (with `default_args`)."""
        defaults = derived.pop("default_args", None) or {}
        given = {**defaults, **derived}
        return build(self, cfg, **{key: value for key, value in given.items() if key not in cfg})


def parameters(component: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """List the options of a class or function.

    A class that passes `**options` on to its base class takes its base's options too.

    Returns:
        {name: parameter} with resolved annotations, and whether it accepts any other name.
    """
    found: dict[str, inspect.Parameter] = {}
    is_class = inspect.isclass(component)
    constructors = [component]
    if is_class:
        constructors = [vars(c)["__init__"] for c in component.__mro__ if "__init__" in vars(c)]
    passes_positional = False  # a class that passes *args on may fill its base's parameters
    for constructor in constructors:
        try:
            signature = list(inspect.signature(constructor).parameters.values())
        except ValueError:  # implemented in C without a signature
            return found, True
        own = signature[1:] if is_class else signature
        for parameter in own:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                known = parameter.replace(annotation=annotation_of(parameter, constructor))
                if passes_positional and known.default is known.empty:
                    known = known.replace(default=None)
                found.setdefault(parameter.name, known)
        kinds = {parameter.kind for parameter in signature}
        passes_positional = passes_positional or inspect.Parameter.VAR_POSITIONAL in kinds
        if inspect.Parameter.VAR_KEYWORD not in kinds or constructor is object.__init__:
            return found, False
    return found, not is_class


def check(
    registry: ComponentRegistry,
    cfg: Any,
    *,
    where: str = "",
    derived: tuple[str, ...] = (),
) -> Any:
    """Check a component's type, and its options' names and types, without building it.

    Args:
        registry: The registry of its kind.
        cfg: dict(type=..., option=...).
        where: Its place in the config, such as "model.backbone"; begins every message.
        derived: Options that the builder passes and that a config may not set.

    Returns:
        The registered class or function.

    Raises:
        ConfigError: For an unknown type or option, a derived or a missing option, or a value that
            does not fit the constructor's annotation.
    """
    component = check_names(registry, cfg, where=where, derived=derived)
    check_types(component, cfg, where)
    return component


def check_names(
    registry: ComponentRegistry,
    cfg: Any,
    *,
    where: str = "",
    derived: tuple[str, ...] = (),
) -> Any:
    """Check a component's type and its options' names; see `check`."""
    place = f"{where}: " if where else ""
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise ConfigError(must_be_a_part(registry, place, cfg))
    name = cfg["type"]
    try:
        component = registry.get(name)
    except ConfigError as error:
        place = f"{where}.type: " if where else ""
        raise ConfigError(f"{place}{error}") from None
    known, accepts_any = parameters(component)
    for key in cfg:
        if key == "type":
            continue
        if key in derived:
            raise ConfigError(
                f"{place}{key!r} follows from the other parts; remove it from the config."
            )
        if key not in known and not accepts_any:
            valid = [option for option in known if option not in derived]
            raise ConfigError(f"{place}{name} has no option {key!r}{nearest(key, valid)}")
    for option, parameter in known.items():
        required = parameter.default is inspect.Parameter.empty
        if required and option not in cfg and option not in derived:
            raise ConfigError(f"{place}{name} needs the option {option!r}.")
    return component


def must_be_a_part(registry: ComponentRegistry, place: str, given: Any) -> str:
    """Return the message for something that is no component's config."""
    return f"{place}{article(registry.name)} must be a dict with a 'type', got {given!r}."


def check_types(component: Any, options: Mapping[str, Any], where: str) -> None:
    """Check options against the annotations. Raises ConfigError for the first that does not fit."""
    known, _ = parameters(component)
    for name, value in options.items():
        if name in known and name != "type":
            check_option(f"{where}.{name}".lstrip("."), value, known[name])


def build(registry: ComponentRegistry, cfg: Any, *, where: str = "", **derived: Any) -> Any:
    """Build a component from its config.

    Args:
        registry: The registry of its kind.
        cfg: dict(type=..., option=...). Any other object counts as built already.
        where: Its place in the config, such as "model.backbone"; begins every message.
        derived: Constructor arguments that follow from the other parts.

    Raises:
        ConfigError: For a mistake in `cfg`. For an option of a wrong type it is the constructor's
            own, which knows the range, or else that of the annotation. A ValueError of the
            constructor becomes one, and so does a TypeError if an option has no annotation to check
            it by. Anything else that a component raises is a bug in it and keeps its traceback; but
            the classes of mmengine and torch check their options by any kind of exception.
    """
    place = f"{where}: " if where else ""
    if not isinstance(cfg, Mapping):
        if isinstance(cfg, (str, int, float, list, tuple, type(None))):
            raise ConfigError(must_be_a_part(registry, place, cfg))
        return cfg
    component = check_names(registry, cfg, where=where, derived=tuple(derived))
    options = {key: value for key, value in cfg.items() if key != "type"}
    foreign = component.__module__.partition(".")[0] in FOREIGN
    mistake: ConfigError | None = None
    try:
        check_types(component, options, where)
    except ConfigError as error:
        if foreign:
            raise
        mistake = error
    try:
        built = component(**options, **derived)
        if mistake:
            raise mistake
        return built
    except Exception as error:
        if mistake and not isinstance(error, ConfigError):
            raise mistake from None
        if foreign:
            unclear = list(options)
        elif isinstance(error, ValueError):
            if isinstance(error, ConfigError) and where and str(error).startswith(where):
                raise
            raise ConfigError(located(where, str(error), options)) from error
        elif isinstance(error, TypeError):
            unclear = unannotated(component, options)
        else:
            raise
        if not unclear:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        named = ", ".join(unclear)
        raise ConfigError(
            f"{place}{cfg['type']} refuses its options ({named}): {reason}"
        ) from error


def located(where: str, message: str, options: Iterable[str]) -> str:
    """Return a message about a component with its place: "a.b: ...", or "a.b.option: ..." if the
    message begins with the name of one of its options."""
    begins = re.match(r"(\w+)[:.\[]", message)
    if not where:
        return message
    return f"{where}{'.' if begins and begins[1] in options else ': '}{message}"


def unannotated(component: Any, options: Iterable[str]) -> list[str]:
    """List the options that no annotation could check."""
    known, _ = parameters(component)
    return [name for name in options if name not in known or says_nothing(known[name].annotation)]
