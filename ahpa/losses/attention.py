"""Distillation of attention maps from a teacher's blocks (HASTE, arXiv:2505.16792)."""

from torch import Tensor

from ..registry import PAIR_LOSSES
from ..registry import validation as valid
from ..registry.contracts import PairLoss
from ..registry.precision import full_precision


@PAIR_LOSSES.register_module()
class AttentionDistillation(PairLoss):
    """Cross-entropy of the student's attention S under the teacher's T (HASTE's attention term):

        mean_{b,h,q} [ - sum_k softmax(T)[b,h,q,k] log_softmax(S)[b,h,q,k] ]

    S and T are logits over the same N grid tokens, q k^T / sqrt(d_head). Student head h is compared
    with teacher head h, for the first heads that both have. The gradient to S is
    (softmax S - softmax T) / (B H N) over the H compared heads. HASTE's mean over four pairs of
    blocks is that of `AttentionAlignment`.

    Args:
        dim: Heads that student and teacher both have.
        heads: How many heads are compared, from the first; by default as many as both have.

    Raises:
        ConfigError: If `heads` is not in 1..dim.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int | None = None,
    ) -> None:
        super().__init__(dim=dim)
        self.heads = None if heads is None else valid.integer("heads", heads, least=1, most=dim)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        token_weights: Tensor | None = None,
    ) -> Tensor:
        """Compare attention logits.

        Args:
            pred: The student's logits [B, H, N, N].
            target: The teacher's logits [B, H', N, N].
            token_weights: [B, N] of mean 1, a weight for each query q; or None.

        Returns:
            A 0-d tensor.

        Raises:
            ValueError: If the shapes do not fit each other or `heads`.
        """
        self._check(pred, target)
        heads = self.heads or min(pred.shape[1], target.shape[1])
        with full_precision(pred.device):
            student = pred[:, :heads].float().log_softmax(-1)
            teacher = target[:, :heads].float().softmax(-1)
            entropy = -(teacher * student).sum(-1)
            if token_weights is not None:
                entropy = token_weights.float()[:, None] * entropy
            return entropy.mean()

    def _check(self, pred: Tensor, target: Tensor) -> None:
        """Raise ValueError if the logits cannot be compared."""
        square = pred.ndim == 4 and pred.shape[-1] == pred.shape[-2]
        fits = target.ndim == 4 and pred.shape[0] == target.shape[0]
        if not (square and fits and pred.shape[2:] == target.shape[2:]):
            raise ValueError(
                "AttentionDistillation compares logits [B, H, N, N] and [B, H', N, N], "
                f"got {tuple(pred.shape)} and {tuple(target.shape)}."
            )
        fewest = min(pred.shape[1], target.shape[1])
        if self.heads is not None and self.heads > fewest:
            raise ValueError(
                f"heads: {self.heads} heads are compared, but only {fewest} are there."
            )
