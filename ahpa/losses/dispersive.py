"""The dispersive loss (arXiv:2506.09027): features of different samples repel each other."""

import logging
import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..registry import REGULARISERS, ConfigError
from ..registry import validation as valid
from ..registry.contracts import Regulariser, Tokens
from ..registry.precision import full_precision

POOLS = ("rank", "all_ranks")
logger = logging.getLogger("ahpa")


class GatherRanks(torch.autograd.Function):
    """Concatenate the tensors [B, ...] of all ranks along the batch, with gradient.

    The backward pass sums each rank's gradient over all ranks. If every rank computes the same loss
    of the gathered batch, and the gradients of the parameters are then averaged over the ranks (as
    DDP and FSDP do), the result is the gradient of that loss.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Gather; every rank must hold the same number of samples."""
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        """Sum over the ranks and keep this rank's part."""
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def squared_distances(z: Tensor) -> Tensor:
    """Return |z_i - z_j|^2 [B, B] for z [B, K]; exactly 0 for i = j.

    The mean over the batch is subtracted first, which leaves the distances unchanged and keeps the
    rounding small.
    """
    z = z - z.mean(0, keepdim=True)
    gram = z @ z.mT
    lengths = gram.diagonal()
    return (lengths[:, None] + lengths - 2 * gram).clamp_min(0)


@REGULARISERS.register_module()
class DispersiveLoss(Regulariser):
    """The InfoNCE-style dispersive loss with squared distances (arXiv:2506.09027):

        log( 1/B^2 sum_{i,j} exp(-d_ij / tau) ),  d_ij = |z_i - z_j|^2 / (N D)

    z_i [N D] are the grid tokens of sample i, and i = j is included. It is at most 0 and falls as
    the samples move apart. Its value depends on the number B of samples that are compared: the
    authors compare 16 in JAX and 32 in PyTorch.

    Args:
        dim: Width D of the tokens.
        tau: Temperature, above 0.
        pool: The samples that are compared: "rank" (this process's micro-batch), "all_ranks" (the
            micro-batches of all processes, with gradient), or an integer (consecutive chunks of
            that many samples of the micro-batch; the mean over the chunks). A micro-batch smaller
            than an integer pool is compared as a whole, with a warning in the log: the objective
            is another one then.

    Raises:
        ConfigError: If `tau` is not above 0 or `pool` is neither a name nor a positive integer.
    """

    def __init__(
        self,
        *,
        dim: int,
        tau: float = 0.5,
        pool: str | int = "rank",
    ) -> None:
        super().__init__(dim=dim)
        self.tau = valid.positive("tau", tau)
        if pool not in POOLS and not (valid.is_integer(pool) and int(pool) >= 1):
            raise ConfigError(
                f"pool: must be 'rank', 'all_ranks' or a positive integer, got {pool!r}."
            )
        self.pool = pool
        self.warned = False

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the loss, 0-d float32, for tokens [B, P+N, D].

        Raises:
            ConfigError: If the micro-batch is larger than an integer `pool`, but not a multiple.
        """
        tokens.require_all("DispersiveLoss")
        grid = tokens.without_prefix().tokens
        with full_precision(grid.device):
            z = grid.float().flatten(1)
            return torch.stack([self.disperse(part) for part in self.pools(z)]).mean()

    def pools(self, z: Tensor) -> tuple[Tensor, ...]:
        """Split or gather the flattened samples [B, N D] into the sets that are compared."""
        if isinstance(self.pool, int):
            if len(z) < self.pool:
                self.warn(len(z), self.pool)
                return (z,)
            if len(z) % self.pool:
                raise ConfigError(
                    f"DispersiveLoss.pool: the micro-batch of {len(z)} is not a multiple of "
                    f"{self.pool}; change pool or train_dataloader.global_batch_size."
                )
            return z.split(self.pool)
        if self.pool == "all_ranks" and dist.is_available() and dist.is_initialized():
            return (GatherRanks.apply(z),)
        return (z,)

    def warn(self, batch: int, pool: int) -> None:
        """Say once that the micro-batch is smaller than the pool."""
        if not self.warned:
            logger.warning(
                "DispersiveLoss: a micro-batch of %d samples is smaller than pool=%d; all of it is "
                "compared, which is another objective.",
                batch,
                pool,
            )
        self.warned = True

    def disperse(self, z: Tensor) -> Tensor:
        """Return the loss of one set of samples [B, N D]."""
        similarity = -squared_distances(z) / z.shape[1] / self.tau
        return similarity.flatten().logsumexp(0) - 2 * math.log(len(z))
