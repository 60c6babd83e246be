"""Small numerical helpers that several rooms share."""

import torch
from torch import Tensor


def entropy(weights: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension, in nats: [..., K] -> [...].

    Rows are normalised to sum 1 first, since sigmoid weights do not. The clamp keeps value and
    gradient finite at p = 0.
    """
    p = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


def per_pixel(t: Tensor, grid: tuple[int, int], x: Tensor) -> Tensor:
    """Spread a time per token over the pixels of its token.

    Args:
        t: Times; [B, N] for one per grid token, and any other shape is returned unchanged.
        grid: Token grid (h, w).
        x: A stream [B, C, H, W] whose sides are multiples of the grid's.

    Returns:
        [B, 1, H, W] for times [B, N].
    """
    if t.ndim != 2:
        return t
    rows, columns = grid
    tall = t.unflatten(1, (1, rows, columns)).repeat_interleave(x.shape[2] // rows, 2)
    return tall.repeat_interleave(x.shape[3] // columns, 3)


def token_index(ids: Tensor, prefix: int, width: int) -> Tensor:
    """Return the index of all prefix tokens and of the grid tokens `ids` for gather and scatter.

    Args:
        ids: Ids of grid tokens [B, K].
        prefix: Number of prefix tokens P.
        width: Channels C.

    Returns:
        [B, P+K, C] int64.
    """
    first = torch.arange(prefix, device=ids.device).expand(len(ids), prefix)
    index = torch.cat([first, prefix + ids], dim=1)
    return index[..., None].expand(-1, -1, width)


def gather_tokens(whole: Tensor, ids: Tensor, prefix: int) -> Tensor:
    """Return the prefix tokens and the grid tokens `ids` [B, K] of [B, P+N, C]: [B, P+K, C]."""
    return whole.gather(1, token_index(ids, prefix, whole.shape[-1]))
