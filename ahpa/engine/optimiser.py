"""The optimiser's side of a step: parameter groups, autocast, clipping, and the guard that keeps
anything non-finite out of the weights.

Nothing here waits for the device: the gradient norm and the guard's flag stay tensors, and a fused
optimiser takes the flag (`found_inf`) and leaves weights and moments unchanged.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..registry import OPTIMIZERS, ConfigError, build
from ..registry.contracts import PairLoss
from ..registry.precision import DTYPES, autocast
from ..registry.validation import choice, is_number, positive_int

FUSED = ("Adam", "AdamW", "SGD")  # torch's optimisers with a fused kernel


def build_optimizer(cfg: Mapping[str, Any], net: nn.Module) -> torch.optim.Optimizer:
    """Build the torch optimiser over the trained parameters.

    One group; or two if there is weight decay, which applies to matrices and not to biases, norms
    and other vectors (also if the decay is the optimiser's own default). Each pair loss with
    `optimizer_options` gets a group of its own, marked `apart`, whose gradients are clipped
    separately. The fused kernel is used unless the config says otherwise.

    Args:
        cfg: dict(type=..., lr=...), a torch optimiser by name.
        net: The trained model.
    """
    own = [m for m in net.modules() if isinstance(m, PairLoss) and m.optimizer_options]
    apart = {id(p) for loss in own for p in loss.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if weight_decay(cfg):
        groups = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    for loss in own:
        options = loss.optimizer_options or {}
        groups.append({"params": list(loss.parameters()), "apart": True, **options})
    if cfg["type"] in FUSED and "fused" not in cfg and "foreach" not in cfg:
        cfg = {**cfg, "fused": True}
    return build(OPTIMIZERS, cfg, where="optim_wrapper.optimizer", params=groups)


def weight_decay(cfg: Mapping[str, Any]) -> float:
    """Return the decay of an optimiser's config, or else the optimiser's own default."""
    if "weight_decay" in cfg:
        return cfg["weight_decay"] or 0.0
    signature = inspect.signature(OPTIMIZERS.get(cfg["type"]))
    parameter = signature.parameters.get("weight_decay")
    return 0.0 if parameter is None or parameter.default is parameter.empty else parameter.default


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients as a 0-d tensor, without waiting for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


class Optimiser:
    """Backward, clip and step, without waiting for the device and without non-finite weights.

    A step is skipped on all ranks together if a loss or a gradient of any of them is not finite.

    Args:
        optimizer: The torch optimiser.
        precision: Autocast of the forward pass: "fp32", "bf16" or "fp16" (with a gradient scaler).
        clip_grad: Largest gradient norm, or None for no clipping.
        accumulative_counts: Micro-batches per step.
        max_bad_steps: This many skipped steps in a row stop the run.

    Raises:
        ConfigError: For an option out of its range.
    """

    def __init__(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        precision: str = "fp32",
        clip_grad: float | None = 1.0,
        accumulative_counts: int = 1,
        max_bad_steps: int = 10,
    ) -> None:
        where = "optim_wrapper"
        if clip_grad is not None and (not is_number(clip_grad) or clip_grad <= 0):
            raise ConfigError(
                f"{where}.clip_grad: must be a number above 0 or None, got {clip_grad!r}."
            )
        self.optimizer = optimizer
        self.precision = choice(f"{where}.precision", precision, tuple(DTYPES))
        self.clip_grad = clip_grad
        self.accumulate = positive_int(f"{where}.accumulative_counts", accumulative_counts)
        self.max_bad_steps = positive_int(f"{where}.max_bad_steps", max_bad_steps)
        groups = optimizer.param_groups
        together = [p for group in groups if not group.get("apart") for p in group["params"]]
        self.clipped = [together, *(group["params"] for group in groups if group.get("apart"))]
        self.device: torch.device = groups[0]["params"][0].device
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        zero = torch.zeros((), device=self.device)
        self.grad_norm = zero  # of the last step, before clipping
        self.lr = 0.0  # of the last step
        self.bad = zero  # 1 if the last step was skipped
        self.bad_losses = zero.expand(0)  # 1 for each of its micro-batches, here, with a bad loss
        self.bad_in_row = zero.clone()
        self.bad_total = zero.clone()
        self._finite: Tensor | None = None  # whether every loss of this step is finite
        self._finite_losses: list[Tensor] = []  # of each micro-batch of this step

    @contextmanager
    def forward_context(self, net: nn.Module, *, last: bool) -> Iterator[None]:
        """Enter autocast; for all but the last micro-batch, ranks do not exchange gradients."""
        without_exchange: AbstractContextManager = nullcontext()
        if isinstance(net, DistributedDataParallel) and not last:
            without_exchange = net.no_sync()
        with without_exchange, autocast(self.device, self.precision):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's share of the loss."""
        finite = loss.detach().float().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        self._finite_losses.append(finite)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        torch.autograd.backward(scaled)

    @torch.no_grad()
    def step(self) -> None:
        """Clip and apply the gradients unless something is not finite, then clear them."""
        self.lr = self.optimizer.param_groups[0]["lr"]
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norms = [total_norm(parameters) for parameters in self.clipped]
        self.grad_norm = norms[0]
        finite = sum(norms[1:], norms[0]).isfinite()
        bad = (~(finite if self._finite is None else finite & self._finite)).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if self.clip_grad is not None:
            for parameters, norm in zip(self.clipped, norms, strict=True):
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm, foreach=True)
        self._apply(bad)
        self.bad = bad
        self.bad_in_row = (self.bad_in_row + bad) * bad
        self.bad_total = self.bad_total + bad
        if self._finite_losses:
            self.bad_losses = (~torch.stack(self._finite_losses)).float()
        self._finite = None
        self._finite_losses = []
        if self.scaler:
            self.scaler.update()
        self.optimizer.zero_grad()

    def _apply(self, bad: Tensor) -> None:
        optimizer: Any = self.optimizer
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.grad_scale = None
            optimizer.found_inf = bad
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif not bad.item():  # an optimiser without a fused kernel costs one wait a step
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return all state, as tensors and plain numbers."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "bad_total": int(self.bad_total),
            "bad_in_row": int(self.bad_in_row),
        }
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.bad_total.fill_(state["bad_total"])
        self.bad_in_row.fill_(state["bad_in_row"])
        if self.scaler and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
