"""The optimiser's tail: autocast, accumulation, clipping, and a guard that keeps anything non-finite out of the weights.

Nothing here waits for the device: the gradient norm and the guard's flag stay tensors, and a fused optimiser takes the
flag (`found_inf`) and leaves weights and moments as they are. On several ranks the flag is reduced, so all skip together.
"""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper

from ..registry import OPTIM_WRAPPERS, OPTIMIZERS, ConfigError, build, nearest

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> str:
    if precision not in DTYPES:
        raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
    return precision


def build_optimizer(cfg: dict, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Builds the optimiser over the trainable parameters: one group, or two when there is weight decay, which only
    matrices get; and one group more for each module with `optimizer_options`, whose gradients are clipped by themselves
    (`apart`). Uses the fused kernel where the optimiser has one and the config does not say otherwise."""
    own = [module for module in model.modules() if getattr(module, "optimizer_options", None)]
    apart = {id(p) for module in own for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups = [dict(params=trained)]
    if cfg.get("weight_decay"):
        groups = [dict(params=[p for p in trained if p.ndim > 1]),
                  dict(params=[p for p in trained if p.ndim <= 1], weight_decay=0.0)]  # fmt: skip
    groups += [dict(params=list(module.parameters()), apart=True, **module.optimizer_options) for module in own]
    fused = cfg["type"] in ("Adam", "AdamW", "SGD") and "fused" not in cfg and "foreach" not in cfg
    cfg = {**cfg, "fused": True} if fused else cfg
    return build(OPTIMIZERS, cfg, where="optim_wrapper.optimizer", params=groups)


def total_norm(parameters) -> torch.Tensor:
    """The 2-norm of all gradients, without waiting for the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)


@OPTIM_WRAPPERS.register_module()
class AlignmentOptimWrapper(OptimWrapper):
    """Backward, accumulation, clip and step, without waiting for the device and without non-finite weights.

    precision: 'fp32', 'bf16' or 'fp16' autocast (fp16 with a gradient scaler). clip_grad: the largest gradient norm, or
    None. accumulative_counts: micro-batches per step. max_bad_steps: so many skipped steps in a row stop the run.
    """

    def __init__(self, *, optimizer, precision: str = "fp32", clip_grad: float | None = 1.0,
                 accumulative_counts: int = 1, max_bad_steps: int = 10):  # fmt: skip
        super().__init__(optimizer, accumulative_counts=accumulative_counts)
        if clip_grad is not None and clip_grad <= 0:
            raise ConfigError(f"optim_wrapper.clip_grad: must be above 0 or None, got {clip_grad}.")
        self.precision, self.max_norm, self.max_bad_steps = check_precision(precision), clip_grad, max_bad_steps
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters, self.device = parameters, parameters[0].device
        together = [p for group in optimizer.param_groups if not group.get("apart") for p in group["params"]]
        self.clipped = [together, *(group["params"] for group in optimizer.param_groups if group.get("apart"))]
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self.grad_norm = self.bad = torch.zeros((), device=self.device)
        self.bad_in_row = torch.zeros((), device=self.device)
        self.bad_total = torch.zeros((), device=self.device)
        self._micro, self._loss_ok = 0, None

    def initialize_count_status(self, model, init_counts, max_counts) -> None:
        """mmengine's counting of micro-steps is not used: the loop counts optimiser steps."""

    def should_update(self) -> bool:
        return self._micro % self._accumulative_counts == 0

    def should_sync(self) -> bool:
        return (self._micro + 1) % self._accumulative_counts == 0

    @contextmanager
    def optim_context(self, model):
        dtype = DTYPES[self.precision]
        with super().optim_context(model), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None) -> None:
        """Backward of one micro-batch's loss; after the last of an iteration the guarded step."""
        finite = loss.detach().float().isfinite()
        self._loss_ok = finite if self._loss_ok is None else self._loss_ok & finite
        loss = loss / self._accumulative_counts
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        self._micro += 1
        if self.should_update():
            self.step()
            self._loss_ok = None

    @torch.no_grad()
    def step(self, **kwargs) -> None:
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norms = [total_norm(parameters) for parameters in self.clipped]
        self.grad_norm = norms[0]
        bad = (~(sum(norms).isfinite() & self._loss_ok)).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if self.max_norm is not None:
            for parameters, norm in zip(self.clipped, norms, strict=True):
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm, foreach=True)
        self._guarded_step(bad)
        self.bad = bad
        self.bad_in_row = (self.bad_in_row + bad) * bad
        self.bad_total = self.bad_total + bad
        if self.scaler:
            self.scaler.update()

    def _guarded_step(self, bad):
        optimizer = self.optimizer
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.grad_scale, optimizer.found_inf = None, bad
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif not bad.item():  # an optimiser without a fused kernel costs one wait a step
            optimizer.step()

    def state_dict(self) -> dict:
        state = dict(optimizer=self.optimizer.state_dict(), bad_total=int(self.bad_total))
        state["bad_in_row"] = int(self.bad_in_row)
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.bad_total.fill_(state["bad_total"])
        self.bad_in_row.fill_(state["bad_in_row"])
        if self.scaler and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
