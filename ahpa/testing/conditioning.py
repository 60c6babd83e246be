"""Conformance checks for conditioners and text encoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import CONDITIONERS, TEXT_ENCODERS, UserError, build
from ..registry.contracts import (
    Clean,
    Condition,
    Conditioner,
    Geometry,
    TextCond,
    TextEncoder,
)
from .common import assert_finite, random_tensor, toy_geometry

PROMPTS = ("a red mushroom", "", "A blue fish, swimming!", "word " * 200)


def check_conditioner(
    conditioner: Mapping[str, Any] | Conditioner,
    *,
    geometry: Geometry | None = None,
    batch: int = 64,
) -> None:
    """Check that a conditioner keeps the contract `Conditioner`.

    Its conditions fit the geometry; dropped samples have the null condition and the others their
    own; dropout depends on the generator alone; it has nothing to train.

    Args:
        conditioner: A config, or a built conditioner.
        geometry: Sizes of the model; by default of a small class-conditioned one.
        batch: Number of samples.

    Raises:
        AssertionError: If the contract is broken; says how.
    """
    geometry = geometry or toy_geometry()
    part = build(CONDITIONERS, conditioner, geometry=geometry)
    assert isinstance(part, Conditioner), "a conditioner must derive from ahpa's Conditioner"
    assert part.takes in ("classes", "prompts"), f"takes: 'classes' or 'prompts', {part.takes!r}"
    _check_frozen(part)

    entries = part.example(batch, _generator(0))
    labels, captions = entries.get("label"), entries.get("caption")
    clean = Clean({"image": random_tensor(batch, 1)}, labels=labels, captions=captions)
    cond = part(clean, _generator(1))
    assert isinstance(cond, Condition), f"must return a Condition, got {type(cond).__name__}"
    _check_fits("the condition of a batch", cond.value, geometry, batch)
    _check_dropout(part, cond, entries, batch)
    again = part(clean, _generator(1))
    for first, second in zip(_tensors(cond.value), _tensors(again.value)):
        assert torch.equal(first, second), "one generator state gives two conditions"

    _check_fits("null", part.null(3, "cpu"), geometry, 3)
    shown = part.all()
    assert shown, "all() must list at least one class or prompt"
    _check_fits("encode", part.encode(shown[:2], "cpu"), geometry, len(shown[:2]))
    unknown: Any = geometry.num_classes if part.takes == "classes" else 3
    try:
        part.encode([unknown], "cpu")
    except UserError:
        return
    raise AssertionError(f"encode([{unknown!r}]) must raise UserError")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tensors(cond: Any) -> list[Tensor]:
    """List the tensors of a condition."""
    parts = [cond] if isinstance(cond, Tensor) else cond
    return [part for part in parts if part is not None]


def _assert_shape(what: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    given = tuple(value.shape)
    assert given == wanted, f"{what}: must be {wanted}, is {given}"


def _check_frozen(part: nn.Module) -> None:
    trained = [name for name, p in part.named_parameters() if p.requires_grad]
    assert not trained, f"must have nothing to train, but {trained} require a gradient"


def _check_fits(what: str, value: Any, geometry: Geometry, batch: int) -> None:
    """A condition of `batch` samples is one that a backbone of this geometry accepts."""
    if geometry.num_classes is not None:
        assert isinstance(value, Tensor), f"{what}: must be labels, got {type(value).__name__}"
        assert value.dtype == torch.long, f"{what}: labels must be long, got {value.dtype}"
        _assert_shape(what, value, (batch,))
        assert value.min() >= 0, f"{what}: a label is negative"
        assert value.max() <= geometry.num_classes, f"{what}: a label exceeds the null class"
        return
    assert isinstance(value, TextCond), f"{what}: must be a TextCond, got {type(value).__name__}"
    assert value.tokens.ndim == 3, f"{what}: tokens must be [B, T, W]"
    assert geometry.text_dim is not None, "the geometry has neither classes nor text"
    length = value.tokens.shape[1]
    _assert_shape(f"{what}: tokens", value.tokens, (batch, length, geometry.text_dim))
    if geometry.pooled_dim is None:
        assert value.pooled is None, f"{what}: has a pooled vector, which the backbone cannot use"
    else:
        assert value.pooled is not None, f"{what}: the backbone's pooled vector is missing"
        _assert_shape(f"{what}: pooled", value.pooled, (batch, geometry.pooled_dim))


def _check_dropout(
    part: Conditioner, cond: Condition, entries: Mapping[str, Any], batch: int
) -> None:
    dropped = cond.dropped
    if dropped is None:
        return
    assert dropped.dtype == torch.bool, f"dropped: must be bool, got {dropped.dtype}"
    _assert_shape("dropped", dropped, (batch,))
    wanted = entries["label"].tolist() if part.takes == "classes" else entries["caption"]
    own, null = part.encode(wanted, "cpu"), part.null(batch, "cpu")
    for value, kept, empty in zip(_tensors(cond.value), _tensors(own), _tensors(null)):
        assert torch.equal(value[dropped], empty[dropped]), "a dropped sample is not null"
        close = torch.allclose(value[~dropped].float(), kept[~dropped].float(), atol=1e-5)
        assert close, "a sample that is not dropped has not its own condition"


def check_text_encoder(encoder: Mapping[str, Any] | TextEncoder) -> None:
    """Check that a text encoder keeps the contract `TextEncoder`.

    Its sizes are known before its weights; its output has them, in float32 and without a
    gradient; a prompt's encoding does not depend on the other prompts.

    Args:
        encoder: A config, or a built encoder.

    Raises:
        AssertionError: If the contract is broken; says how.
    """
    part = build(TEXT_ENCODERS, encoder)
    assert isinstance(part, TextEncoder), "a text encoder must derive from ahpa's TextEncoder"
    length, width, pooled_dim = part.length, part.width, part.pooled_dim
    part.load()
    _check_frozen(part)
    out = _encode(part, PROMPTS)
    _assert_shape("tokens", out.tokens, (len(PROMPTS), length, width))
    assert out.pooled is not None, "pooled: is missing"
    _assert_shape("pooled", out.pooled, (len(PROMPTS), pooled_dim))
    assert not torch.equal(out.tokens[0], out.tokens[1]), "two prompts have the same tokens"
    alone = _encode(part, PROMPTS[:1])
    close = torch.allclose(alone.tokens[0], out.tokens[0], rtol=1e-4, atol=1e-4)
    assert close, "the encoding of a prompt depends on the other prompts"


def _encode(part: TextEncoder, prompts: Sequence[str]) -> TextCond:
    out = part(prompts)
    assert isinstance(out, TextCond), f"must return a TextCond, got {type(out).__name__}"
    for value in _tensors(out):
        assert value.dtype == torch.float32, f"must be float32, got {value.dtype}"
        assert not value.requires_grad, "carries a gradient; a text encoder is frozen"
        assert_finite("the encoding", value)
    return out
