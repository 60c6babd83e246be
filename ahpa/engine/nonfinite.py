"""When non-finite steps end a run, and what is said then: which
term, which module, which samples."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..registry import UserError
from ..registry.contracts import Dataset, Losses, Progress
from .dryrun import synthetic_batch
from .optimiser import total_norm

if TYPE_CHECKING:
    from .trainer import Trainer

NOTHING = "none when the batch is computed again (check the hardware)"


class NonFinite(UserError):
    """Too many skipped steps in a row, or a weight that is not finite."""


def stop_if_hopeless(trainer: "Trainer", *, in_row: int, samples: str) -> None:
    """Stop the run after a skipped step, if it must: every rank must call it at the same step.

    Args:
        trainer: Whose last steps were skipped.
        in_row: How many in a row, up to now.
        samples: Samples of the last skipped step, for the message.

    Raises:
        NonFinite: If a weight is not finite, or after `max_bad_steps` skipped steps in a row.
    """
    for name, parameter in trainer.model.named_parameters():
        if not is_finite(parameter):
            raise NonFinite(bad_weight(name, parameter, trainer.iteration, trainer.run.saved()))
    if in_row < trainer.optimiser.max_bad_steps:
        return
    sources = trainer.metrics.processes.gather(find_source(trainer, trainer.batches))
    named = [
        source if len(sources) == 1 else f"{source} on rank {rank}"
        for rank, source in enumerate(sources)
        if source != NOTHING
    ]
    on_noise = trainer.metrics.processes.gather(find_source(trainer, random_batches(trainer)))
    raise NonFinite(
        f"{in_row} steps in a row were not finite, so training stops at iteration "
        f"{trainer.iteration}. First non-finite value: {'; '.join(named) or NOTHING}. Samples: "
        f"{samples}{advice(trainer, blameless=NOTHING not in on_noise)}; then continue with "
        "--resume. Weights and EMA are those of the last finite step."
    )


def advice(trainer: "Trainer", *, blameless: bool) -> str:
    """Continue the sentence that names the samples: whether they are the reason, what to do.

    Args:
        trainer: Whose steps were not finite.
        blameless: Whether random images are not finite either.
    """
    sizes = {n: float(p.detach().abs().max()) for n, p in trainer.model.named_parameters()}
    largest = max(sizes, key=lambda name: sizes[name])
    known = (
        f"The largest |weight| is {sizes[largest]:.3g} ({largest}), the learning rate "
        f"{trainer.optimiser.lr:.3g}: "
    )
    if not blameless:
        return (
            f". {known}lower the learning rate, use bf16 or fp32 instead of fp16, or look at these "
            "samples"
        )
    return (
        f"; random images are not finite either, so they are not the reason. {known}if the weights "
        "have grown, lower the rate and remove the checkpoints saved since then; else lower the "
        "weight of the term that overflows, or use bf16 or fp32 instead of fp16"
    )


def random_batches(trainer: "Trainer") -> list[Any]:
    """Make batches of random images and conditions, as large as those of the last step."""
    return [
        synthetic_batch(trainer.model, batch=len(next(tensors_of(batch))), seed=micro)
        for micro, batch in enumerate(trainer.batches)
    ]


def bad_weight(name: str, weight: Tensor, iteration: int, saved: str) -> str:
    """Make the message for a weight that is not finite.

    Args:
        name: Of the weight.
        weight: Its values.
        iteration: Where training stops.
        saved: The newest saved state, or "".
    """
    count = int((~weight.isfinite()).sum())
    sound = f"The newest sound checkpoint is {saved}" if saved else "There is no checkpoint yet"
    return (
        f"the weight {name} is not finite ({count} of {weight.numel()} values), which no skipped "
        f"step can mend: training stops at iteration {iteration}, and this state is not saved. "
        f"{sound}. Lower the learning rate or check the hardware, then continue with --resume."
    )


def indices_of(batch: Mapping[str, Any]) -> list[int]:
    """Return the indices of a batch's samples; none if it does not say them."""
    return torch.as_tensor(batch["index"]).tolist() if "index" in batch else []


def names_of(trainer: "Trainer", indices: Iterable[int]) -> list[str]:
    """Name samples as the data set does."""
    dataset = trainer.loader.dataset
    name = dataset.sample_id if isinstance(dataset, Dataset) else str
    return [name(index) for index in indices]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dicts, lists, tuples, dataclasses and losses."""
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
    elif is_dataclass(value):
        yield from tensors_of(vars(value))


def is_finite(value: Any) -> bool:
    """Whether every floating-point tensor in a nested value is finite."""
    floats = (tensor for tensor in tensors_of(value) if tensor.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in floats)


def bad_rows(value: Any, count: int) -> set[int]:
    """Return the numbers of the samples whose rows are not finite; none if it cannot be told.

    Args:
        value: Tensors; those with `count` rows have one row for each sample.
        count: Samples in the batch.
    """
    rows: set[int] = set()
    for tensor in tensors_of(value):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == count:
            bad = (~tensor.isfinite()).reshape(count, -1).any(1)
            rows |= set(bad.nonzero().flatten().tolist())
    return rows if len(rows) < count else set()


def find_source(trainer: "Trainer", batches: Sequence[Any]) -> str:
    """Compute the last step again on this rank, and name the first thing that is not finite: an
    input, a weight, a module's output, a loss term, a gradient or their norm.

    Args:
        trainer: Whose last step it was.
        batches: Its micro-batches, or others in their place.
    """
    model = trainer.model
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"the weight {name}"
    model.zero_grad(set_to_none=True)
    try:
        for micro, batch in enumerate(batches):
            source = find_in_batch(trainer, batch, micro)
            if source:
                return source
        return find_in_gradients(trainer)
    finally:
        model.zero_grad(set_to_none=True)


def find_in_batch(trainer: "Trainer", batch: Any, micro: int) -> str:
    """Name the first non-finite value of a micro-batch, "" if there is none; adds its gradients."""
    for name, value in batch.items():
        if not is_finite(value):
            return f"the batch's {name!r}{whose(trainer, batch, value)}"
    accumulate = trainer.optimiser.accumulate
    rng = trainer.rng(trainer.iteration - 1, micro)
    with trainer.optimiser.forward_context(trainer.model, last=True):
        clean = trainer.parts.encode(batch, rng)
        if not is_finite(clean):
            return f"what the frozen parts make of the batch{whose(trainer, batch, clean)}"
        losses, modules = compute_again(trainer, clean, rng)
    if modules:
        name, output = modules[0]
        return f"the output of module {name}{whose(trainer, batch, output)}"
    for term in losses.terms:
        if not is_finite(term.value):
            return f"the term {term.name}"
    if not is_finite(losses.total):
        return "the sum of the weighted terms, each of which is finite"
    (losses.total / accumulate).backward()
    return ""


def whose(trainer: "Trainer", batch: Any, value: Any) -> str:
    """Return " for sample ..." if only some samples' rows of a value are not finite."""
    indices = indices_of(batch)
    rows = bad_rows(value, len(indices)) if indices else set()
    names = ", ".join(names_of(trainer, [indices[row] for row in sorted(rows)]))
    return f" for sample {names}" if names else ""


def find_in_gradients(trainer: "Trainer") -> str:
    """Name the first gradient that is not finite, or say that their norm overflows."""
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        if not is_finite(gradient):
            return f"the gradient of {name}"
    norms = [total_norm(parameters) for parameters in trainer.optimiser.clipped]
    if is_finite(norms):
        return NOTHING
    largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    return (
        "the norm of the gradients, which overflows float32 although each gradient is finite "
        f"(the largest, {float(gradients[largest].abs().max()):.3g}, is of {largest})"
    )


def compute_again(
    trainer: "Trainer", clean: Any, rng: torch.Generator
) -> tuple[Losses, list[tuple[str, Any]]]:
    """Repeat the forward pass of the last step.

    Returns:
        Its losses, and (name, output) of the modules whose output is not finite, in the order of
        computation.
    """
    found: list[tuple[str, Any]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not is_finite(output):
                found.append((name, output))

        return module.register_forward_hook(note)

    progress = Progress(trainer.iteration - 1, trainer.options.max_iters, True)
    handles = [watch(name, module) for name, module in trainer.model.named_modules() if name]
    try:
        losses = trainer.model(clean, rng, progress)
    finally:
        for handle in handles:
            handle.remove()
    return losses, found
