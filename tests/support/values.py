"""Values of one training step, built by hand from a few tensors."""

import torch

from ahpa.registry.contracts import BackboneOutput, Clean, Condition, Noised, Tap, TargetView


def make_view(taps, *, grid, prefix=0, t=None, views=1, clean=None):
    """A view in which only the taps and the times have content.

    Args:
        taps: {block, or Tap: tensor [B, P+N, D] or logits}.
        grid: Token grid (h, w).
        prefix: Number of prefix tokens P.
        t: Times [B] or [B, N]; 0.5 for every sample by default.
        views: Views of each image.
        clean: The encoded batch, empty by default.
    """
    taps = {tap if isinstance(tap, Tap) else Tap(tap): value for tap, value in taps.items()}
    rows = len(next(iter(taps.values())))
    times = torch.full((rows,), 0.5) if t is None else t
    noised = Noised(x={}, t=times, target={}, data={}, noise={}, path=None, views=views)
    out = BackboneOutput({}, taps, prefix, grid)
    labels = torch.zeros(rows, dtype=torch.long)
    clean = Clean(streams={}) if clean is None else clean
    return TargetView(clean=clean, noised=noised, cond=Condition(labels), out=out)
