"""Targets from inside the training itself: the diffused latent, the averaged model at a cleaner
time, and a later block of the student's own forward pass."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..registry import PRIORS, ConfigError
from ..registry.contracts import (
    Backbone,
    Clean,
    CleanPrior,
    Features,
    Geometry,
    LevelSpec,
    Prior,
    Tap,
    TargetView,
    TokenPlan,
)
from ..registry.validation import block_number, boolean, choice, integer, probability

logger = logging.getLogger("ahpa")

USUAL_RMS = (1 / 3, 3.0)  # of scaled latents; Stable Diffusion's, scaled by 0.18215, have 0.96


def standardised(latent: Tensor) -> Tensor:
    """Give each sample [C, H, W] of a batch mean 0 and standard deviation 1, in float32."""
    values = latent.float().flatten(1)
    centred = values - values.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return (centred / (deviation + 1e-6)).view_as(latent).to(latent.dtype)


def warn_of_scale(latent: Tensor) -> None:
    """Log a warning if the root mean square of a latent is outside `USUAL_RMS`."""
    rms = float(latent.float().square().mean().sqrt())
    if USUAL_RMS[0] <= rms <= USUAL_RMS[1]:
        return
    logger.warning(
        "LatentPrior: the latent's root mean square is %.3g, where scaled latents have about 1. It "
        "is the target, so the method's weight and smooth L1's beta do not fit. Set the "
        "autoencoder's `model.tokenizer.scale`, or `standardise=True` for the target alone.",
        rms,
    )


TOKEN_TIMES = ("min", "mean", "groups")


@PRIORS.register_module()
class LatentPrior(CleanPrior):
    """The clean latent itself (SRA 2): the p x p latents of a token become its channels.

    For patches of 2 and latents of 4 channels these are 16. It is the tensor that is diffused,
    sampled and scaled; the paper has no code, so this is inferred.

    SRA 2 compares it by smooth L1 (beta 0.05), so its scale is part of the method: on an
    autoencoder without its scaling factor a loss of 60 instead of 0.06 is reported. The first batch
    is measured, and a latent whose root mean square is far from 1 is warned about.

    Levels: "latent" [B, p p C, h, w].

    Args:
        geometry: The model's sizes.
        standardise: Whether to give each sample's latent mean 0 and standard deviation 1 over all
            its values, which makes the target independent of the autoencoder's scale. The tensor
            that is diffused stays as it is.
    """

    def __init__(self, *, geometry: Geometry, standardise: bool = False) -> None:
        super().__init__(geometry=geometry)
        self.standardise = boolean("standardise", standardise)
        self.measured = False
        channels = geometry.patch_size**2 * geometry.latent_channels
        self.levels = {"latent": LevelSpec(channels, geometry.token_stride)}

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return {"latent": [B, p p C, h, w]}."""
        patch = self.geometry.patch_size
        latent = clean.streams["image"].detach()
        if self.standardise:
            latent = standardised(latent)
        elif not self.measured:
            warn_of_scale(latent)
            self.measured = True
        pattern = "b c (h p) (w q) -> b (p q c) h w"
        return {"latent": rearrange(latent, pattern, p=patch, q=patch)}


@PRIORS.register_module()
class TeacherPrior(Prior):
    """A block of the averaged model, for the same image, noise and label at a cleaner time (SRA).

    The teacher's time is t' = clamp(t - offset u, 0, 1) with u ~ U(0, 1), one for each sample. Its
    condition is the student's, with the same labels dropped, and it stops at its block.

    Where the student has a time for each token, t is first reduced to one a sample. Self-Flow's
    teacher (arXiv:2603.06507) is `offset=0` with `token_times="min"`: it sees every token at
    min(t, s). With `token_times="groups"` the teacher has the student's groups of tokens and
    attention, each at its own t'_g = clamp(t_g - offset u_g, 0, 1) (SRA with DTS-AS,
    arXiv:2607.02508).

    `steps` and `least` are for a discrete path, on which a time is rounded to a step.

    Levels: "teacher" [B, D, h, w].

    Args:
        geometry: The model's sizes.
        block: Block of the averaged model, from 1.
        offset: Largest difference of the two times, in [0, 1].
        steps: The path's number of steps, for the draw of SRA's DiT code: t' = t - k / steps with
            an integer k uniform over 0 .. offset * steps - 1. With 0 it is u as above, which after
            rounding has the first and last k half as often.
        least: Lower bound of t'; 1 / 1000 in SRA's DiT code.
        token_times: How times [B, N] become [B]: "min" (the cleanest token) or "mean"; or "groups",
            which leaves each group of tokens its time.

    Raises:
        ConfigError: If the backbone has no such block, or an option is not valid.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        block: int,
        offset: float = 0.2,
        steps: int = 0,
        least: float = 0.0,
        token_times: str = "min",
    ) -> None:
        super().__init__(geometry=geometry)
        self.block = block_number("block", block, geometry.depth)
        self.offset = probability("offset", offset)
        self.steps = integer("steps", steps)
        self.least = probability("least", least)
        self.token_times = choice("token_times", token_times, TOKEN_TIMES)
        self.levels = {"teacher": LevelSpec(geometry.width, geometry.token_stride)}

    def probe(self, backbone: Backbone) -> Callable[[], Any]:
        """Return a call that runs the teacher's blocks once on the meta device."""
        shadow = copy.deepcopy(backbone).to("meta")
        x = {name: torch.zeros(1, *shape, device="meta") for name, shape in shadow.streams.items()}
        t = torch.zeros(1, device="meta")
        cond = shadow.blank_cond(1, "meta")
        return lambda: shadow(x, t, cond, stop=self.block)

    def time(self, t: Tensor, rng: torch.Generator | None, groups: Tensor | None = None) -> Tensor:
        """Draw the teacher's times: [B], or [B, N] for `token_times="groups"`.

        Args:
            t: The student's times, [B] or [B, N].
            rng: The source of u: one number a sample, or one a token, of which each group uses one.
            groups: Group ids of the tokens [B, N], needed for "groups".

        Raises:
            ConfigError: For "groups" if there are none.
        """
        if self.token_times == "groups":
            if groups is None:
                raise ConfigError(
                    'token_times: "groups" needs a flow with groups of tokens, such as '
                    "TokenGroupFlow."
                )
            return (t - self.step_back(t, rng).gather(1, groups)).clamp(self.least, 1)
        if t.ndim == 2:
            t = t.amin(1) if self.token_times == "min" else t.mean(1)
        return (t - self.step_back(t, rng)).clamp(self.least, 1)

    def step_back(self, t: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draw the differences of the two times, shaped as t."""
        if self.steps:
            most = max(1, round(self.offset * self.steps))
            drawn = torch.randint(most, t.shape, generator=rng, device=t.device)
            return drawn.to(t.dtype) / self.steps
        drawn = torch.rand(t.shape, generator=rng, device=t.device, dtype=t.dtype)
        return self.offset * drawn

    @torch.no_grad()
    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return {"teacher": [B, D, h, w]}, without prefix tokens and without gradient.

        Raises:
            ConfigError: If the model keeps no average of its backbone.
        """
        if view.ema is None:
            raise ConfigError("TeacherPrior: the model keeps no averaged backbone; set `ema`.")
        t = self.time(view.noised.t, view.rng, view.noised.groups)
        x = view.noised.at(t, self.geometry.grid)
        taps = frozenset({Tap(self.block)})
        groups = view.plan.groups if self.token_times == "groups" else None
        plan = TokenPlan(groups=groups)
        out = view.ema(x, t, view.cond.value, taps=taps, stop=self.block, plan=plan)
        return {"teacher": out.tokens(self.block).as_map()}


@PRIORS.register_module()
class BlockPrior(Prior):
    """A later block of the student's own forward pass, without gradient (LayerSync).

    LayerSync aligns block 8 of 28 of SiT-XL with block 16 without a projector. Nothing runs in
    addition to the student.

    Levels: "block" [B, D, h, w].

    Args:
        geometry: The model's sizes.
        block: Block of the backbone, from 1.

    Raises:
        ConfigError: If the backbone has no such block.
    """

    def __init__(self, *, geometry: Geometry, block: int) -> None:
        super().__init__(geometry=geometry)
        self.block = block_number("block", block, geometry.depth)
        self.taps = frozenset({Tap(self.block)})
        self.levels = {"block": LevelSpec(geometry.width, geometry.token_stride)}

    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return {"block": [B, D, h, w]}, without prefix tokens and without gradient."""
        return {"block": view.out.tokens(self.block).as_map().detach()}
