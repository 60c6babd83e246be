"""Shared by the conformance checks: random tensors, a small geometry, half precision."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry.contracts import Geometry, LevelSpec


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normals of this shape from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def toy_geometry(
    *,
    resolution: int = 64,
    downsample: int = 8,
    latent_channels: int = 4,
    tokenizer_levels: Mapping[str, LevelSpec] | None = None,
    streams: Mapping[str, tuple[int, ...]] | None = None,
    out_channels: int | None = None,
    patch_size: int = 2,
    prefix: int = 0,
    width: int = 32,
    depth: int = 4,
    num_heads: int = 4,
    num_classes: int | None = 10,
    text_dim: int | None = None,
    pooled_dim: int | None = None,
) -> Geometry:
    """Make a small geometry for tests: by default 64 px, latents 4 x 8 x 8, a 4 x 4 token grid."""
    side = resolution // downsample
    image = {"image": (latent_channels, side, side)}
    return Geometry(
        resolution=resolution,
        downsample=downsample,
        tokenizer_levels=dict(tokenizer_levels or {}),
        streams={**image, **(streams or {})},
        out_channels=latent_channels if out_channels is None else out_channels,
        grid=(side // patch_size, side // patch_size),
        prefix=prefix,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        text_dim=text_dim,
        pooled_dim=pooled_dim,
    )


def assert_finite(name: str, value: Tensor) -> None:
    """Raise AssertionError if a tensor has a value that is not finite."""
    assert value.isfinite().all(), f"{name} has values that are not finite"


def assert_half_precision(owner: str, run: Callable[[], Any]) -> None:
    """Run a call under bfloat16 and float16 autocast and check that its tensors are finite."""
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            value = run()
        parts = value if isinstance(value, Mapping) else {"output": value}
        for name, part in parts.items():
            assert_finite(f"{owner} under {dtype}: {name}", part)
