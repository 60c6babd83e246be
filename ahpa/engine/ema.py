"""The exponential moving average of the backbone, kept outside the trained model."""

import copy

import torch
from torch import nn

from ..registry.contracts import Backbone
from ..registry.validation import is_number


class ExponentialMovingAverage:
    """A float32 copy of the backbone whose weights follow the trained ones.

    Attributes:
        decay: Share of the average that is kept at each update.
        backbone: The averaged backbone, frozen and in eval mode.
    """

    def __init__(self, backbone: Backbone, *, decay: float) -> None:
        if not is_number(decay) or not 0 <= decay < 1:
            raise ValueError(f"ema: the decay must be a number in [0, 1), got {decay!r}.")
        self.decay = float(decay)
        self.backbone: Backbone = copy.deepcopy(backbone).float().eval().requires_grad_(False)
        self._averages: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self.backbone.to(device)
        self._averages = []

    @torch.no_grad()
    def update(self, backbone: nn.Module) -> None:
        """Set average <- decay * average + (1 - decay) * weights: once per optimiser step.

        It runs after skipped (non-finite) steps too, towards the unchanged finite weights, since
        deciding otherwise would need the host to wait for the device.
        """
        if not self._averages:
            self._averages = [p.data for p in self.backbone.parameters()]
            self._weights = [p.data for p in backbone.parameters()]
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)
