"""The one reader of weight files. Files are data and are not trusted: they are safetensors, or
pickles read by torch's safe loader, which builds tensors and plain containers and runs nothing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

WRAPPERS = ("state_dict", "model")  # entries under which training programs store the weights


def read_state_dict(
    path: Path | str, what: str, keys: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a weight file onto the CPU.

    Args:
        path: A .safetensors file, or a pickle of any other ending.
        what: What reads it, for messages, such as "TimmEncoder".
        keys: Names of the tensors to read; None for all of them.

    Returns:
        {name: tensor}. If the file holds its weights under "state_dict" or "model", the names
        are those inside that entry.

    Raises:
        UserError: If the file is missing or damaged, could run code, lacks one of `keys`, or holds
            something other than a tensor under one of them.
    """
    path = existing(path, what)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, what, keys)
    contents = unwrapped(read_contents(path, what))
    wanted = contents if keys is None else keys
    return {key: _tensor(contents, key, path, what) for key in wanted}


def read_shapes(path: Path | str, what: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors of a weight file; of a .safetensors file only the header.

    Args:
        path: A .safetensors file, or a pickle of any other ending.
        what: What reads it, for messages.

    Returns:
        {name: shape}, with names as in `read_state_dict`; entries that are not tensors are left
        out.

    Raises:
        UserError: If the file is missing or damaged, or could run code.
    """
    path = existing(path, what)
    if path.suffix != ".safetensors":
        contents = unwrapped(read_contents(path, what, device="meta"))
        return {key: tuple(x.shape) for key, x in contents.items() if isinstance(x, Tensor)}
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # not iterable itself
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # safetensors has errors of its own
        raise refusal(path, what, error) from error


def read_contents(
    path: Path | str, what: str, *, allowed: Sequence[type] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Read everything in a weight file: tensors, and in a pickle plain values around them.

    Args:
        path: A .safetensors file, or a pickle of any other ending.
        what: What reads it, for messages.
        allowed: Harmless classes that the pickle may hold, such as argparse.Namespace.
        device: Where tensors go; "meta" to read their shapes alone.

    Raises:
        UserError: If the file is missing or damaged, could run code, or is not a dictionary.
    """
    path = existing(path, what)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device=device)
        with torch.serialization.safe_globals(list(allowed)):
            contents = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or malicious file may fail in any way
        raise refusal(path, what, error) from error
    if not isinstance(contents, Mapping):
        raise UserError(
            f"{what}: {path} must hold a dictionary of tensors, got a {type(contents).__name__}."
        )
    return dict(contents)


def unwrapped(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry that holds the weights, or the contents themselves."""
    for name in WRAPPERS:
        inner = contents.get(name)
        if isinstance(inner, Mapping):
            return inner
    return contents


def existing(path: Path | str, what: str) -> Path:
    """Return the path of an existing file. Raises UserError if there is none."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise UserError(f"{what}: there is no file {found}.")
    return found


def refusal(path: Path, what: str, error: Exception) -> UserError:
    """Return the error for a file that cannot be read, in one line."""
    return UserError(
        f"{what}: {path} is refused: it is damaged, or holds more than tensors and could run code "
        f"({type(error).__name__}). Convert it to .safetensors."
    )


def _read_safetensors(path: Path, what: str, keys: Iterable[str] | None) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            present = list(file.keys())
            wanted = present if keys is None else list(keys)
            missing = [key for key in wanted if key not in present]
            found = {} if missing else {key: file.get_tensor(key) for key in wanted}
    except Exception as error:  # safetensors has errors of its own
        raise refusal(path, what, error) from error
    if missing:
        raise UserError(f"{what}: {path} has no weight {missing[0]!r}.")
    return found


def _tensor(contents: Mapping[str, Any], key: str, path: Path, what: str) -> Tensor:
    """Return one entry, which must be a tensor."""
    if key not in contents:
        raise UserError(f"{what}: {path} has no weight {key!r}.")
    value = contents[key]
    if isinstance(value, Tensor):
        return value
    raise UserError(f"{what}: {path} must hold tensors only; {key!r} is a {type(value).__name__}.")
