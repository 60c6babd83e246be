"""`AveragedTaps`: the mean of several blocks, instead of one block, is pulled to a target."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ahpa.registry import (
    ALIGNMENTS,
    PAIR_LOSSES,
    PROJECTORS,
    ROUTERS,
    SCHEDULES,
    ConfigError,
    build,
    nearest,
)
from ahpa.registry.contracts import (
    Alignment,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    PairLoss,
    Progress,
    Projector,
    Router,
    Schedule,
    Tap,
    TargetView,
    Tokens,
)
from ahpa.registry.precision import full_precision
from ahpa.registry.validation import block_number
from ahpa.registry.values import Term


def unit_rms(x: Tensor) -> Tensor:
    """Return vectors of root mean square 1, [..., D], float32."""
    x = x.float()
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@ALIGNMENTS.register_module()
class AveragedTaps(Alignment):
    """The mean of several blocks' tokens, each brought to RMS 1, is pulled to a routed target.

        H = mean_k rms(h_k),   loss = weight * pair(projector(H), router(levels, t))

    The objective reaches all of the blocks at once and leaves open which of them carries it.

    Args:
        name: Name of the alignment; passed by ahpa.
        geometry: The model's sizes; passed by ahpa.
        flow: The flow; passed by ahpa and not used.
        priors: Levels of every prior; passed by ahpa.
        blocks: Numbers of the tapped blocks, from 1.
        source: Name of the prior.
        router: Config of a router without prefix levels.
        projector: Config of a projector.
        pair_loss: Config of a pair loss with a single value.
        weight: A number, or the config of a schedule.

    Raises:
        ConfigError: If the options do not fit the backbone or the priors.
    """

    router: Router
    projector: Projector
    pair_loss: PairLoss
    weight: Schedule

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
        blocks: Sequence[int],
        source: str,
        router: Mapping[str, Any],
        projector: Mapping[str, Any],
        pair_loss: Mapping[str, Any],
        weight: float | Mapping[str, Any] = 1.0,
    ) -> None:
        super().__init__(name=name, geometry=geometry, flow=flow, priors=priors)
        where = f"model.alignments.{name}"
        if source not in priors:
            raise ConfigError(f"source: no prior is called {source!r}{nearest(source, priors)}")
        if not isinstance(blocks, (list, tuple)) or not blocks or len(set(blocks)) != len(blocks):
            raise ConfigError(f"blocks: must be a list of different blocks, got {blocks!r}.")
        self.blocks = tuple(block_number("blocks", b, geometry.depth) for b in blocks)
        self.taps = frozenset(Tap(block) for block in self.blocks)
        self.source = source
        self.router = build(
            ROUTERS, router, where=f"{where}.router", levels=priors[source], geometry=geometry
        )
        if self.router.prefix:
            raise ConfigError("router.prefix: AveragedTaps compares grid tokens only.")
        self.reads = {source: self.router.used_levels}
        width = self.router.out_dim
        self.projector = build(
            PROJECTORS, projector, where=f"{where}.projector", dim=geometry.width, out_dim=width
        )
        self.pair_loss = build(PAIR_LOSSES, pair_loss, where=f"{where}.pair_loss", dim=width)
        schedule = weight if isinstance(weight, Mapping) else {"type": "Constant", "value": weight}
        self.weight = build(SCHEDULES, schedule, where=f"{where}.weight")

    def average(self, view: TargetView) -> Tokens:
        """Return the mean of the tapped grid tokens, [B, N, D] float32."""
        with full_precision(view.noised.t.device):
            taps = [view.out.tokens(block).without_prefix() for block in self.blocks]
            mean = torch.stack([unit_rms(tap.tokens) for tap in taps]).mean(0)
        return Tokens(mean, 0, taps[0].grid)

    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Return the term "<alignment>/pair"; when it is shown, the size of the target too."""
        tokens = self.average(view)
        intra, inter = self.router.weights(view.noised.sample_t, tokens.tokens)
        target = self.router.mix(features[self.source], intra, inter)
        value = self.pair_loss(self.projector(tokens), target)
        diagnostics = {}
        if progress.diagnose:
            shown = target.detach().float().square().mean().sqrt()
            diagnostics[f"{self.name}/target_rms"] = shown
        term = Term(f"{self.name}/pair", value, self.weight(progress))
        losses = Losses((term,), diagnostics)
        if self.training:
            self.weight.observe(losses, progress)
        return losses

    def summary(self) -> str:
        """Describe the alignment in one line."""
        blocks = ", ".join(str(block) for block in self.blocks)
        return f"mean of blocks {blocks} <- {self.source} ({', '.join(self.router.used_levels)})"

    def probes(self) -> dict[str, Callable[[], Any]]:
        """Return the projector's call for one image on the meta device."""
        height, width = self.geometry.grid
        shape = (1, height * width, self.geometry.width)

        def project() -> Tensor:
            shadow = copy.deepcopy(self.projector).to("meta")
            return shadow(Tokens(torch.zeros(shape, device="meta"), 0, (height, width)))

        return {"projector": project}
