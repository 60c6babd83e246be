"""What to say when steps are non-finite: which loss term, which module, which samples; and when to stop."""

import torch
from torch import Tensor

from ..registry import UserError


class NonFinite(UserError):
    """Too many skipped steps in a row."""


def explain_and_stop(runner) -> None:
    """Reads the guard's counters (waits for the device), tells of skipped steps, raises NonFinite after too many."""
    wrapper = runner.optim_wrapper
    total = int(wrapper.bad_total)
    if total == runner.bad_steps_told:
        return
    in_row = int(wrapper.bad_in_row)
    runner.bad_steps_told = total
    runner.say(
        f"iteration {runner.iter}: a loss or gradient is not finite; the step is skipped on all ranks "
        f"({in_row} in a row, {total} in all; samples {sample_names(runner)})."
    )
    if in_row >= wrapper.max_bad_steps:
        raise NonFinite(
            f"{in_row} steps in a row were not finite, so training stops at iteration {runner.iter}. "
            f"First non-finite value: {find_source(runner)}. Samples: {sample_names(runner)}. "
            "Weights and EMA are as after the last finite step. Lower the learning rate, use bf16 or fp32 instead of "
            "fp16, or look at these samples; then go on with --resume."
        )


def sample_names(runner) -> str:
    """The ids of this rank's latest batch, the first sixteen."""
    indices = [int(i) for part in runner.last_indices if part is not None for i in torch.as_tensor(part).tolist()]
    name = getattr(runner.train_dataloader.dataset, "sample_id", str)
    shown = ", ".join(name(i) for i in indices[:16])
    return shown + (f" and {len(indices) - 16} more" if len(indices) > 16 else "")


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _finite(value) -> bool:
    return all(bool(part.isfinite().all()) for part in _tensors(value) if part.is_floating_point())


def find_source(runner) -> str:
    """Runs the latest batch once more and names the first thing that is not finite: an input, a weight, a module's
    output, a loss term, or a gradient."""
    model, wrapper = runner.plain_model, runner.optim_wrapper
    batch = model.data_preprocessor(runner.last_batch, True)
    for name, value in batch.items():
        if not _finite(value):
            return f"the batch's {name!r}"
    for name, value in model.named_parameters():
        if not _finite(value):
            return f"the weight {name}"
    found = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: None if _finite(output) else found.append(name)
        )
        for name, module in model.named_modules()
        if name
    ]
    try:
        with wrapper.optim_context(model):
            losses = model.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the output of module {found[0]}"
    for name, value in losses.items():
        if not _finite(value):
            return f"the term {name}"
    terms = [value for name, value in losses.items() if "loss" in name]
    sum(terms).backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    model.zero_grad(set_to_none=True)
    return f"the gradient of {bad[0]}" if bad else "none when the batch is computed again (check the hardware)"
