"""The one reader of weight files. They are not trusted: they are safetensors, or pickles read by
torch's safe loader, which builds tensors and plain containers and runs nothing. What a file makes
this process allocate is bounded by the file's size."""

import mmap
import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError, printable
from .files import user_path

ZIP = b"PK\x03\x04"  # how a file of torch's format since 1.6 begins
OLD_HEADER = 3  # pickles before the contents in torch's older format
COPIES = 16  # how many times the bytes of a file its tensors may show, by sharing them
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
    odd = next((key for key in contents if not isinstance(key, str)), None)
    if odd is not None:
        raise UserError(f"{what}: {path} must name its weights by texts, got {odd!r}.")
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
        return {
            key: tuple(x.shape)
            for key, x in contents.items()
            if isinstance(x, Tensor) and isinstance(key, str)
        }
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
        _refuse_oversized(path)
        with torch.serialization.safe_globals(list(allowed)):
            contents = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or malicious file may fail in any way
        raise refusal(path, what, error) from error
    if not isinstance(contents, Mapping):
        raise UserError(
            f"{what}: {path} must hold a dictionary of tensors, got a {type(contents).__name__}."
        )
    if device != "meta":
        try:
            _refuse_odd_tensors(contents, path.stat().st_size)
        except ValueError as error:
            raise UserError(f"{what}: {path} is refused: {error}.") from error
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
    found = user_path(path, what)
    if not found.is_file():
        raise UserError(f"{what}: there is no file {printable(str(found))}.")
    return found


def refusal(path: Path, what: str, error: Exception) -> UserError:
    """Return the error for a file that cannot be read, in one line."""
    return UserError(
        f"{what}: {path} is refused: it is damaged, or holds more than tensors and could run code "
        f"({type(error).__name__}). Convert it to .safetensors."
    )


def _refuse_oversized(path: Path) -> None:
    """Raise ValueError for a pickle that would allocate more than it holds."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if not zipped:
        largest = max(_declared_sizes(path), default=0) if size else 0
        if largest > size:
            raise ValueError(f"a storage of {largest} elements in a file of {size} bytes")
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > size:
        raise ValueError("its records are compressed or overlap")


def _declared_sizes(path: Path) -> Iterator[int]:
    """Yield the integers that describe each storage of a file in torch's older format."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        data: Any = mapped  # reading from it never allocates more than the file
        for _ in range(OLD_HEADER):
            for _op in pickletools.genops(data):
                pass
        memo: dict[Any, int] = {}
        recent: list[int] = []  # integers since the last storage
        last: int | None = None  # the integer on top of the stack, if there is one
        for op, argument, _position in pickletools.genops(data):
            value: Any = argument
            if op.name in ("BINPUT", "LONG_BINPUT") and last is not None:
                memo[value] = last
                continue
            last = None
            if op.name in ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"):
                last = int(value)
            elif op.name in ("BINGET", "LONG_BINGET"):
                last = memo.get(value)
            if last is not None:
                recent.append(last)
            if op.name == "BINPERSID":
                yield max(recent, default=0)
            if op.name in ("BINPERSID", "MARK"):
                recent = []


def _refuse_odd_tensors(contents: Mapping[Any, Any], size: int) -> None:
    """Raise ValueError for tensors that are not dense, or show far more than a file's bytes."""
    shown = 0
    seen: set[int] = set()  # a pickle may hold a list that contains itself
    pending: list[Any] = [contents]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend(value)
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
                raise ValueError("it holds a tensor that is not dense")
            own = value.numel() * value.element_size()
            if own > value.untyped_storage().nbytes():
                shape = tuple(value.shape)
                raise ValueError(f"a tensor of the shape {shape} repeats fewer stored elements")
            shown += own
    if shown > COPIES * size:
        raise ValueError(f"its tensors are {shown} bytes, of a file of {size}")


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
