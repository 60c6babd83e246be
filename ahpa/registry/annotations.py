"""Checks a config's options against the annotations of the constructor that receives them.

The same rules hold for all components, also for those of other packages: numbers are finite,
booleans are no numbers, a list or a tuple is a sequence and text is not, an integer may stand for a
float. An annotation that says nothing (none, `Any`, a name that cannot be resolved) is not checked.
"""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .errors import ConfigError, nearest
from .validation import is_integer, is_number

SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {  # annotation -> check, words
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (is_integer, "an integer"),
    float: (is_number, "a finite number"),
    str: (lambda value: isinstance(value, str), "text"),
    Path: (lambda value: isinstance(value, (str, Path)), "a path"),
    None: (lambda value: value is None, "None"),
    types.NoneType: (lambda value: value is None, "None"),
}
PLURALS = {int: "integers", float: "finite numbers", str: "texts", Path: "paths"}
UNIONS = (Union, types.UnionType)


def annotation_of(parameter: inspect.Parameter, constructor: Any) -> Any:
    """Return a parameter's annotation, resolved if it is a string; `Any` if it says nothing."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, constructor.__globals__)
        except Exception:  # a name that is imported for type checkers only
            return Any
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    return Any if annotation is parameter.empty else annotation


def check_option(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check an option against the parameter that receives it; its default always fits.

    Args:
        name: Place of the option in the config, such as "model.backbone.depth".
        value: The option.
        parameter: The parameter, with a resolved annotation.

    Raises:
        ConfigError: If the value does not fit.
    """
    is_default = value is None and parameter.default is None
    if is_default or fits(value, parameter.annotation):
        return
    valid = [choice for choice in choices(parameter.annotation) if isinstance(choice, str)]
    if valid:
        raise ConfigError(f"{name}: {value!r} is unknown{nearest(str(value), valid)}")
    raise ConfigError(f"{name}: must be {describe(parameter.annotation)}, got {value!r}.")


def is_no_value_of_a_config(annotation: Any) -> bool:
    """Whether an annotation names what only code can make, such as the tensor that torch's
    optimisers take as a learning rate."""
    return isinstance(annotation, type) and annotation.__module__.partition(".")[0] == "torch"


def says_nothing(annotation: Any) -> bool:
    """Whether any value fits an annotation."""
    if get_origin(annotation) in UNIONS:
        return any(says_nothing(part) for part in get_args(annotation))
    origin = get_origin(annotation)
    if origin is Literal:
        return False
    if annotation in (Any, object) or origin is Annotated:
        return True
    return annotation is not None and not isinstance(origin or annotation, type)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of a config fits an annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in UNIONS:
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if says_nothing(annotation):
        return True
    if annotation in SCALARS:
        return SCALARS[annotation][0](value)
    kind = origin or annotation
    if kind is Callable:
        return callable(value)
    if is_sequence(kind):
        return isinstance(value, (list, tuple)) and parts_fit(value, kind, arguments)
    if issubclass(kind, Mapping):
        of_keys, of_values = arguments or (Any, Any)
        return isinstance(value, Mapping) and all(
            fits(key, of_keys) and fits(part, of_values) for key, part in value.items()
        )
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def is_sequence(kind: type) -> bool:
    """Whether a class is one of those that a list of a config may stand for."""
    abstract = kind.__module__ == "collections.abc" and issubclass(Sequence, kind)
    return abstract or kind in (list, tuple)


def parts_fit(values: Sequence[Any], kind: type, arguments: tuple[Any, ...]) -> bool:
    """Whether the parts of a sequence fit `kind[arguments]`, and their number does."""
    if not arguments:
        return True
    if kind is tuple and arguments[-1] is not Ellipsis:
        same = len(values) == len(arguments)
        return same and all(fits(value, part) for value, part in zip(values, arguments))
    return all(fits(value, arguments[0]) for value in values)


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, also of one in a union or beside None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in UNIONS:
        return tuple(value for part in get_args(annotation) for value in choices(part))
    return ()


def describe(annotation: Any) -> str:
    """Say in words what an annotation takes: "an integer, text or None"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in UNIONS:
        said = [describe(part) for part in arguments if not is_no_value_of_a_config(part)]
        *first, last = said or [describe(part) for part in arguments]
        return f"{', '.join(first)} or {last}" if first else last
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if says_nothing(annotation):
        return "anything"
    if annotation in SCALARS:
        return SCALARS[annotation][1]
    kind = origin or annotation
    if is_sequence(kind):
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            parts = ", ".join(map(describe, arguments))
            return f"a list of {len(arguments)} ({parts})"
        if not arguments or says_nothing(arguments[0]):
            return "a list"
        return f"a list of {PLURALS.get(arguments[0]) or f'parts, each {describe(arguments[0])}'}"
    if issubclass(kind, Mapping):
        of_keys, of_values = arguments or (Any, Any)
        if says_nothing(of_values):
            return "a dict"
        return f"a dict ({describe(of_keys)} to {describe(of_values)})"
    return f"a {kind.__name__}"
