"""Tensor operations of a router's target: levels are resized to the token grid and summed (AHPA,
eq. 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZES = ("bilinear", "adaptive")  # AHPA, Appendix A: bilinear; its section 4.2: adaptive pooling


def resize_to(x: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Resize a feature map to the token grid.

    Args:
        x: Feature map [B, C, H, W].
        grid: Token grid (h, w).
        mode: "bilinear" (without antialiasing) or "adaptive" (average pooling).

    Returns:
        The map [B, C, h, w]; `x` itself if it has that size already.
    """
    if tuple(x.shape[-2:]) == grid:
        return x
    if mode == "adaptive":
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False, antialias=False)


def widen(x: Tensor, width: int) -> Tensor:
    """Zero-pad channels to `width`, rescaled to preserve the RMS. No-op if C == width.

    [ours] Nothing is learned here, because a learned map could collapse.

    Args:
        x: Feature map [B, C, h, w].
        width: Number of channels of the result, at least C.

    Returns:
        The map [B, width, h, w].
    """
    channels = x.shape[1]
    if channels == width:
        return x
    scale = (width / channels) ** 0.5
    missing = width - channels
    return F.pad(scale * x, (0, 0, 0, 0, 0, missing))


def weighted_sum(levels: list[Tensor], scales: Tensor, width: int) -> Tensor:
    """Sum the levels of one group with a weight for each sample and level (AHPA, eq. 3).

    Levels of equal channels are summed before they are widened, and half-precision features are
    never copied to float32 as a whole.

    Args:
        levels: L feature maps [B, C_l, h, w] of the same size.
        scales: Weights [B, L], float32.
        width: Channels of the result; narrower levels are padded, see `widen`.

    Returns:
        The sum [B, width, h, w], float32.
    """
    sums: dict[int, Tensor] = {}
    for x, scale in zip(levels, scales.unbind(1), strict=True):
        channels = x.shape[1]
        scale = scale[:, None, None, None]
        if channels in sums:
            sums[channels] = torch.addcmul(sums[channels], x, scale)
        else:
            sums[channels] = x * scale
    first, *others = (widen(total, width) for total in sums.values())
    return sum(others, first)
