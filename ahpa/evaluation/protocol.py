"""How a figure came about: the protocol that comparable figures share, and its provenance.

A protocol is a nested dict of plain values. Two results are comparable only if their protocols are
equal; seeds, versions and the commit belong to the provenance, which may differ.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..registry import UserError
from ..registry.files import read_json, write_file
from ..registry.validation import is_number

FORMAT = "ahpa-evaluation-1"
UNKNOWN = "unknown"
"""What a protocol holds where nobody recorded a value. It is never equal to anything."""
ABSENT = "(absent)"
HASH_LENGTH = 12  # hexadecimal digits of a protocol's hash


class Difference(NamedTuple):
    """A key in which two protocols differ.

    Attributes:
        key: Dotted key such as "guidance.scale".
        first: Value in the first protocol.
        second: Value in the second protocol.
    """

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.first} against {self.second}"


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one set of samples, with the record of how they came about.

    Attributes:
        figures: {figure: value}.
        protocol: What a comparable result shares: sampler, steps, guidance, latents, decoder,
            number of samples, classes, rounding, reference, extractors, weights, EMA decay,
            iteration.
        provenance: What may differ: run, method, seeds, versions, commit, device, time.
    """

    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def protocol_hash(self) -> str:
        """Hash of the protocol."""
        return protocol_hash(self.protocol)

    def save(self, path: Path) -> None:
        """Write the result as JSON. Raises UserError if it cannot be written."""
        record = {"format": FORMAT, "protocol_hash": self.protocol_hash, **asdict(self)}
        text = json.dumps(record, indent=1, allow_nan=False)
        write_file(Path(path), text.encode() + b"\n")


def load_result(path: Path) -> EvaluationResult:
    """Read a result. Raises UserError if the file is something else or was changed by hand."""
    record = read_json(Path(path), "result")
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise UserError(f"result: {path} is no result of `ahpa evaluate` (format {FORMAT}).")
    sections: list[Any] = [record.get(key) for key in ("figures", "protocol", "provenance")]
    if not all(isinstance(section, Mapping) for section in sections):
        raise UserError(f"result: {path} lacks figures, protocol or provenance.")
    figures, protocol, provenance = sections
    for name, value in figures.items():
        if not is_number(value):
            raise UserError(f"result: {path}: the figure {name!r} is {value!r}, not a number.")
    found = EvaluationResult(figures, protocol, provenance)
    if record.get("protocol_hash") != found.protocol_hash:
        raise UserError(f"result: {path} was changed: its protocol does not have its hash.")
    return found


def canonical_json(value: Any) -> str:
    """Write plain values as JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a protocol's canonical JSON."""
    return hashlib.sha256(canonical_json(protocol).encode()).hexdigest()[:HASH_LENGTH]


def flatten(protocol: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a nested dict."""
    for key, value in protocol.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """List the keys in which two protocols differ, in order. A value that is not recorded differs
    from every value, also from another one that is not recorded.

    Args:
        first: A protocol.
        second: Another one.
    """
    ours, theirs = dict(flatten(first)), dict(flatten(second))
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        pair = Difference(key, ours.get(key, ABSENT), theirs.get(key, ABSENT))
        same = canonical_json(pair.first) == canonical_json(pair.second)
        if not same or UNKNOWN in (pair.first, pair.second):
            found.append(pair)
    return found


def refuse_unlike(
    results: Mapping[str, EvaluationResult],
    *,
    force: bool = False,
    ignore: Sequence[str] = (),
) -> list[Difference]:
    """Refuse results that are not comparable.

    Args:
        results: {name: result}; each is compared with the first.
        force: Return the differences instead.
        ignore: Dotted keys, or beginnings of keys, that may differ.

    Returns:
        All differences; empty for comparable results.

    Raises:
        UserError: If there are differences and `force` is not set; names at most five of them.
    """
    if not results:
        return []
    first, *others = results
    unlike: dict[str, list[Difference]] = {}
    for name in others:
        for difference in differences(results[first].protocol, results[name].protocol):
            if not any(
                difference.key == key or difference.key.startswith(f"{key}.") for key in ignore
            ):
                unlike.setdefault(name, []).append(difference)
    if unlike and not force:
        name, own = next(iter(unlike.items()))
        shown = "; ".join(map(str, own[:5]))
        more = f"; and {len(own) - 5} more" if len(own) > 5 else ""
        further = f" ({len(unlike) - 1} more unlike the first)" if len(unlike) > 1 else ""
        raise UserError(
            f"protocols differ, so their figures are not comparable. {first} and {name}{further}: "
            f"{shown}{more}. Evaluate them alike, or pass --force to see them side by side."
        )
    return [difference for own in unlike.values() for difference in own]
