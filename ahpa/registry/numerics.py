"""Small numerical helpers that several rooms share."""

from torch import Tensor


def entropy(weights: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension, in nats: [..., K] -> [...].

    Rows are normalised to sum 1 first, since sigmoid weights do not. The clamp keeps value and
    gradient finite at p = 0.
    """
    p = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
    return -(p * p.clamp_min(1e-12).log()).sum(-1)
