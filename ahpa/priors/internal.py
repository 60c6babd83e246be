"""Targets from inside the training itself: the latent that is diffused, and the averaged model at a cleaner time."""

import torch
from einops import rearrange
from torch import Tensor

from ..registry import PRIORS, ConfigError
from ..registry.contracts import Features, LevelSpec, Prior, Step


def patch_of(backbone) -> int:
    """Latents a token: the side of the stream over the side of the token grid."""
    return backbone.streams["image"][-1] // backbone.grid[1]


class Internal(Prior):
    """Base of priors that need the backbone's sizes and the tokenizer's stride. ConfigError where they are not given."""

    stride = 8  # pixels a latent; the tokenizer's, once bound

    def bind(self, *, tokenizer, backbone) -> None:
        if tokenizer is not None:
            self.stride = tokenizer.downsample

    def sizes(self, backbone) -> tuple[int, int]:
        """-> (latents a token, pixels a token)."""
        if backbone is None:
            raise ConfigError(f"{type(self).__name__} is made of the model's own parts; it needs a backbone.")
        return patch_of(backbone), self.stride * patch_of(backbone)


@PRIORS.register_module()
class LatentPrior(Internal):
    """The clean latent itself, the p x p latents of a token as its channels: 16 for patch 2 and 4 channels (SRA 2).

    It is the tensor that is diffused, drawn and scaled [inferred: the paper has no code].
    """

    patch = 0

    def spec(self, backbone) -> dict[str, LevelSpec]:
        self.patch, stride = self.sizes(backbone)
        return {"latent": LevelSpec(self.patch**2 * backbone.streams["image"][0], stride)}

    @torch.no_grad()
    def forward(self, step: Step) -> Features:
        """-> {'latent': [B, p p C, h, w]}."""
        p = self.patch
        return {"latent": rearrange(step.noisy.data["image"], "b c (h p) (w q) -> b (p q c) h w", p=p, q=p)}


@PRIORS.register_module()
class TeacherPrior(Internal):
    """Block `block` of the averaged model on the same image, noise and condition at a cleaner time (SRA):
    t' = clamp(t - offset u, 0, 1), u ~ U(0, 1), one for each sample.

    The condition is the student's, labels already dropped; the teacher stops at its block. Two options are for a discrete
    path, where a time is rounded to its step: steps: the path's, for SRA's draw on DiT, t' = t - k / steps with a whole
    number k of 0 .. offset * steps - 1, all alike (0: u as above, which after rounding has the first and last k half as
    often); least: t' is held above it (SRA's DiT code: 1 / 1000). ConfigError for a block that the backbone does not have.
    """

    def __init__(self, *, block: int, offset: float = 0.2, steps: int = 0, least: float = 0.0):
        super().__init__()
        for name, value in (("offset", offset), ("least", least)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {value!r}.")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps: must be a whole number, 0 for none, got {steps!r}.")
        self.block, self.offset, self.steps, self.least = block, float(offset), steps, float(least)

    def spec(self, backbone) -> dict[str, LevelSpec]:
        stride = self.sizes(backbone)[1]
        if not isinstance(self.block, int) or not 1 <= self.block <= backbone.depth:
            raise ConfigError(
                f"TeacherPrior: block {self.block!r} is not of the backbone; blocks are 1..{backbone.depth}."
            )
        return {"teacher": LevelSpec(backbone.hidden_size, stride)}

    def probe(self, backbone):
        """The teacher's blocks: as many as are run."""
        import copy

        shadow = copy.deepcopy(backbone).to("meta")
        x = {name: torch.zeros(1, *shape, device="meta") for name, shape in shadow.streams.items()}
        t, cond = torch.zeros(1, device="meta"), shadow.blank_cond(1, "meta")
        return lambda: shadow(x, t, cond, stop=self.block)

    def time(self, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """The teacher's times [B] for the student's t [B]."""
        if self.steps:
            most = max(1, round(self.offset * self.steps))
            back = torch.randint(most, t.shape, generator=generator, device=t.device).to(t.dtype) / self.steps
        else:
            back = self.offset * torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
        return (t - back).clamp(self.least, 1)

    @torch.no_grad()
    def forward(self, step: Step) -> Features:
        """-> {'teacher': [B, D, h, w]}, without prefix tokens."""
        t = self.time(step.noisy.t, step.generator)
        path, data, noise = step.flow.path, step.noisy.data, step.noisy.noise
        x = {name: path.mix(data[name], noise[name], t)[0] for name in data}
        tapped = step.ema(x, t, step.cond, taps=frozenset({self.block}), stop=self.block).taps[self.block]
        tokens = tapped.tokens[:, tapped.prefix :]
        return {"teacher": tokens.transpose(1, 2).unflatten(2, tapped.grid)}
