"""The conformance check of a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..registry import TOKENIZERS, build
from ..registry.contracts import Features, LevelSpec, Tokenizer
from .common import assert_finite, assert_half_precision


def check_tokenizer(
    tokenizer: Mapping[str, Any] | Tokenizer, *, resolution: int = 64, batch: int = 2
) -> None:
    """Check a tokenizer against its contract.

    Its sizes are known without weights; it encodes to [B, C, H/s, W/s] in float32 and decodes into
    [0, 1]; its levels have the declared shapes and order, whatever else is asked for; and it takes
    the option `precision`, under which the posterior stays float32.

    Args:
        tokenizer: A config, whose type must be registered, or a tokenizer.
        resolution: Side of the images in pixels.
        batch: Number of images.

    Raises:
        AssertionError: If it violates the contract; the message says what is wrong.
    """
    built: Tokenizer = build(TOKENIZERS, tokenizer)
    assert isinstance(built, Tokenizer), f"{type(built).__name__} is not a Tokenizer"
    assert built.latent_channels > 0, "latent_channels must be positive"
    assert built.downsample > 0, "downsample must be positive"
    declared = dict(built.levels)
    built.load()
    built.eval().requires_grad_(False)
    assert dict(built.levels) == declared, "loading the weights changes the levels"

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, resolution, resolution, generator=generator)
    wanted = list(declared)[-2:]
    encoded = built.encode(images, wanted)
    side = resolution // built.downsample
    expected = (batch, built.latent_channels, side, side)
    for name, value in (("mean", encoded.mean), ("std", encoded.std)):
        assert value is not None, f"encode gave no {name} although the latent was asked for"
        assert tuple(value.shape) == expected, (
            f"{name} is {tuple(value.shape)}, expected {expected}"
        )
        assert value.dtype == torch.float32, f"{name} is {value.dtype}, expected float32"
        assert_finite(name, value)
        assert not value.requires_grad, f"{name} carries a gradient"
    check_levels(encoded.levels, declared, wanted, batch, resolution)

    if declared:
        shallow = built.encode(images, wanted[:1], latent=False)
        check_levels(shallow.levels, declared, wanted[:1], batch, resolution)
        same = torch.allclose(shallow.levels[wanted[0]], encoded.levels[wanted[0]], atol=1e-3)
        assert same, f"level {wanted[0]!r} changes with what else is asked for"

    assert encoded.mean is not None
    decoded = built.decode(encoded.mean)
    assert tuple(decoded.shape) == tuple(images.shape), f"decode gave {tuple(decoded.shape)}"
    assert decoded.min() >= 0 and decoded.max() <= 1, "decoded images must lie in [0, 1]"
    assert_half_precision(type(built).__name__, lambda: built.encode(images).mean)
    if isinstance(tokenizer, Mapping):
        _check_precision(tokenizer, images)


def _check_precision(config: Mapping[str, Any], images: torch.Tensor) -> None:
    """Check that the option `precision` exists and leaves the posterior in float32."""
    fast: Tokenizer = build(TOKENIZERS, {**config, "precision": "bf16"})
    fast.load()
    mean = fast.encode(images).mean
    assert mean is not None and mean.dtype == torch.float32, "with precision='bf16': mean float32"
    assert_finite("mean with precision='bf16'", mean)


def check_levels(
    features: Features,
    declared: Mapping[str, LevelSpec],
    wanted: Sequence[str],
    batch: int,
    resolution: int,
) -> None:
    """Check levels against their declaration.

    Args:
        features: What was returned.
        declared: Every level that can be returned.
        wanted: The levels that were asked for.
        batch: Number of samples.
        resolution: Side of the images in pixels.

    Raises:
        AssertionError: If a level is missing, misshapen, not finite, carries a gradient or comes
            out of order.
    """
    for name in wanted:
        given = list(features)
        assert name in features, f"the requested level {name!r} was left out; got {given}"
        value = features[name]
        level = declared[name]
        expected: tuple[int, ...] = (batch, level.channels)
        if not level.is_vector:
            side = resolution // level.stride
            expected += (side**2, side**2) if level.attention else (side, side)
        shape = tuple(value.shape)
        assert shape == expected, f"level {name!r} is {shape}, declared as {expected}"
        assert not value.requires_grad, f"level {name!r} carries a gradient; detach it"
        assert_finite(f"level {name!r}", value)
    order = [name for name in features if name in wanted]
    right = [name for name in declared if name in wanted]
    assert order == right, f"levels come in the order {order}, declared is {right}"
