"""What to say about non-finite steps: which term, which module, which samples; and when to stop."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..registry import UserError
from ..registry.contracts import Dataset, Losses, Progress

if TYPE_CHECKING:
    from .trainer import Trainer

SHOWN = 16  # sample ids in a message


class NonFinite(UserError):
    """Too many skipped steps in a row."""


def stop_if_non_finite(trainer: "Trainer") -> None:
    """Read the guard's counters and report newly skipped steps. Waits for the device.

    Raises:
        NonFinite: After `max_bad_steps` skipped steps in a row, with the first non-finite value.
    """
    optimiser = trainer.optimiser
    total = int(optimiser.bad_total)
    if total == trainer.bad_steps_told:
        return
    trainer.bad_steps_told = total
    in_row = int(optimiser.bad_in_row)
    samples = sample_names(trainer)
    trainer.run.say(
        f"iteration {trainer.iteration}: a loss or gradient is not finite; the step is skipped on "
        f"all ranks ({in_row} in a row, {total} in all; samples {samples})."
    )
    if in_row >= optimiser.max_bad_steps:
        raise NonFinite(
            f"{in_row} steps in a row were not finite, so training stops at iteration "
            f"{trainer.iteration}. First non-finite value: {find_source(trainer)}. Samples: "
            f"{samples}. Weights and EMA are those of the last finite step. Lower the learning "
            "rate, use bf16 or fp32 instead of fp16, or look at these samples; then continue with "
            "--resume."
        )


def sample_names(trainer: "Trainer") -> str:
    """Name the samples of this rank's last step, at most sixteen."""
    indices = [
        int(index)
        for batch in trainer.batches
        if "index" in batch
        for index in torch.as_tensor(batch["index"]).tolist()
    ]
    dataset = trainer.loader.dataset
    name = dataset.sample_id if isinstance(dataset, Dataset) else str
    shown = ", ".join(name(index) for index in indices[:SHOWN])
    rest = len(indices) - SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dicts, lists, tuples and losses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Losses):
        yield from (term.value for term in value.terms)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)


def is_finite(value: Any) -> bool:
    """Whether every floating-point tensor in a nested value is finite."""
    floats = (tensor for tensor in tensors_of(value) if tensor.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in floats)


def find_source(trainer: "Trainer") -> str:
    """Compute the last micro-batch again and name the first thing in it that is not finite: an
    input, a weight, a module's output, a loss term or a gradient."""
    model, batch = trainer.model, trainer.batches[-1]
    for name, value in batch.items():
        if not is_finite(value):
            return f"the batch's {name!r}"
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"the weight {name}"
    losses, modules = compute_again(trainer, batch)
    if modules:
        return f"the output of module {modules[0]}"
    for term in losses.terms:
        if not is_finite(term.value):
            return f"the term {term.name}"
    losses.total.backward()
    gradients = [
        name for name, p in model.named_parameters() if p.grad is not None and not is_finite(p.grad)
    ]
    model.zero_grad(set_to_none=True)
    if gradients:
        return f"the gradient of {gradients[0]}"
    return "none when the batch is computed again (check the hardware)"


def compute_again(trainer: "Trainer", batch: Any) -> tuple[Losses, list[str]]:
    """Repeat the last micro-batch's forward pass -> its losses, and the names of the modules whose
    output is not finite, in the order of computation."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not is_finite(output):
                found.append(name)

        return module.register_forward_hook(note)

    model, optimiser = trainer.model, trainer.optimiser
    iteration = trainer.iteration - 1
    rng = trainer.rng(iteration, optimiser.accumulate - 1)
    progress = Progress(iteration, trainer.options.max_iters, True)
    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        with optimiser.forward_context(model, last=True):
            losses = model(trainer.parts.encode(batch, rng), rng, progress)
    finally:
        for handle in handles:
            handle.remove()
    return losses, found
