"""`WarmUpHold`: a weight that rises, pauses at spikes of its loss, and then stays."""

import torch
from torch import Tensor

from ahpa.registry import SCHEDULES
from ahpa.registry.contracts import Losses, Progress, Schedule
from ahpa.registry.validation import number, positive_int, probability, weight

DECAY = 0.9  # of the running mean of the loss, per step


@SCHEDULES.register_module()
class WarmUpHold(Schedule):
    """The weight rises linearly to `value` in `steps` steps and then holds.

    A step in which the alignment's first term is above `spike` times its running mean, or not
    finite, does not advance the warm-up. State: the steps advanced, the running mean and the last
    step seen, in buffers. Nothing waits for the device. On several processes each has a state of
    its own, and a resumed run gives all of them the first one's.

    Args:
        value: The weight that is held, at least 0.
        steps: Steps of the warm-up.
        spike: Ratio of the loss to its running mean above which a step does not count, at least 1.
        start: Share of `value` in the first step, in [0, 1].
    """

    advanced: Tensor
    mean: Tensor
    last: Tensor

    def __init__(
        self,
        *,
        value: float = 1.0,
        steps: int = 1000,
        spike: float = 2.0,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        self.value = weight("value", value)
        self.steps = positive_int("steps", steps)
        self.spike = number("spike", spike, least=1)
        self.start = probability("start", start)
        self.register_buffer("advanced", torch.zeros(()))
        self.register_buffer("mean", torch.full((), -1.0))
        self.register_buffer("last", torch.full((), -1.0))

    def forward(self, progress: Progress) -> Tensor:
        """Return value * (start + (1 - start) min(1, advanced / steps)), 0-d."""
        risen = (self.advanced / self.steps).clamp(max=1)
        return self.value * (self.start + (1 - self.start) * risen)

    @torch.no_grad()
    def observe(self, losses: Losses, progress: Progress) -> None:
        """Advance by one step unless the loss spikes; once a step, at its first micro-batch."""
        value = losses.terms[0].value.detach().float()
        is_new = self.last != progress.iteration
        is_finite = value.isfinite()
        is_first = self.mean < 0
        is_calm = is_first | (value <= self.spike * self.mean)
        self.advanced.add_((is_new & is_finite & is_calm).float())
        mean = torch.where(is_first, value, DECAY * self.mean + (1 - DECAY) * value)
        self.mean.copy_(torch.where(is_new & is_finite, mean, self.mean))
        self.last.fill_(progress.iteration)
