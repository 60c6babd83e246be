"""The alignment of AHPA and most other methods: a tapped block is pulled towards a routed target
(AHPA, Figure 3 and eq. 5)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..registry import ALIGNMENTS, PROJECTORS, ROUTERS, ConfigError, build
from ..registry.contracts import (
    Alignment,
    Features,
    Flow,
    Geometry,
    LevelSpec,
    Losses,
    Progress,
    Projector,
    Router,
    Tap,
    TargetView,
)
from ..registry.numerics import entropy
from ..registry.validation import block_number, choice
from ..registry.validation import weight as valid_weight
from ..registry.values import Term
from .checks import check_name, levels_of
from .collapse import check_floor, collapse_figures, entropy_term, membership_figures
from .criteria import COSINE, Criteria
from .projectors import meta_call
from .schedules import Weight, build_weight

ROUTER_GRADS = ("target", "aux", "none")
OWN_TERMS = ("router", "entropy")
FIGURES = (
    "constant_cosine",
    "target_rms",
    "entropy_inter",
    "entropy_membership",
    "effective_groups",
    "evenness",
    "evenness_inter",
    "below_floor",
)
GROUP_FIGURES = ("beta", "entropy", "evenness", "alpha_max", "alpha_top")


@ALIGNMENTS.register_module(name="Alignment")
class RoutedAlignment(Alignment):
    """One tapped block, one prior, a router, a projector and any number of criteria.

        tap -> projector -> P [B, N, C]
        prior -> router(t) -> T [B, N, C]
        loss = weight * criterion(P, T)

    Nothing but this loss trains the router; `router_grad` says how. If some tokens skip the tapped
    block (`model.token_routing`), P and T are those of the others.

    Args:
        name: Name of the alignment, which the names of its terms begin with.
        geometry: Sizes of the model.
        flow: The flow (unused).
        priors: Levels of every prior of the model.
        tap: Number of the tapped block, from 1.
        source: Name of the prior.
        router: Config of the router; `StaticRouter` by default.
        projector: Config of the projector; `ConvProjector` by default.
        criteria: {name: config of a pair loss}, each with an optional `weight` of its own; the
            cosine by default.
        weight: Weight of the criteria, a number or the config of a schedule.
        router_grad: How the router is trained: "target" (through the target), "aux" (the criteria
            see a detached target, and the router has a term of its own), or "none" (frozen).
        router_weight: Weight of the router's own term under "aux".
        entropy_weight: Weight of the term against collapse (see `entropy_term`).
        entropy_floor: Share of the largest entropy, in (0, 1], below which that term acts; without
            it, the term is a bonus for the entropies of alpha and beta.

    Raises:
        ConfigError: If the options do not fit together, the prior or the backbone.
    """

    router: Router
    projector: Projector

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
        tap: int,
        source: str,
        router: Mapping[str, Any] | Router | None = None,
        projector: Mapping[str, Any] | Projector | None = None,
        criteria: Mapping[str, Any] | None = None,
        weight: Weight = 1.0,
        router_grad: str = "target",
        router_weight: float = 1.0,
        entropy_weight: float = 0.0,
        entropy_floor: float | None = None,
    ) -> None:
        super().__init__(
            name=check_name("an alignment", name), geometry=geometry, flow=flow, priors=priors
        )
        where = f"model.alignments.{name}"
        self.tap = block_number("tap", tap, geometry.depth)
        self.taps = frozenset({Tap(tap)})
        self.source = source
        levels = levels_of(source, priors, where)
        self.router_grad = choice("router_grad", router_grad, ROUTER_GRADS)
        self.weight = build_weight(weight, where=f"{where}.weight")
        self.router_weight = valid_weight("router_weight", router_weight)
        self.entropy_weight = valid_weight("entropy_weight", entropy_weight)
        self.entropy_floor = check_floor(entropy_floor, self.entropy_weight)

        self.router = build(
            ROUTERS,
            router or {"type": "StaticRouter"},
            where=f"{where}.router",
            levels=levels,
            geometry=geometry,
        )
        self.reads = {source: self.router.used_levels}
        self.projector = build(
            PROJECTORS,
            {"type": "ConvProjector"} if projector is None else projector,
            where=f"{where}.projector",
            dim=geometry.width,
            out_dim=self.router.out_dim,
        )
        self.criteria = Criteria(
            COSINE if criteria is None else criteria,
            dim=self.router.out_dim,
            where=where,
            reserved=self._reserved_names(),
        )
        if router_grad == "none":
            self.router.requires_grad_(False)
        self.learns = any(p.requires_grad for p in self.router.parameters())
        self._check_router()
        self.weight.check_terms(self._term_names(), f"{where}.weight")

    def _reserved_names(self) -> set[str]:
        """Return the names of the alignment's own terms and diagnostics."""
        names = {*OWN_TERMS, *FIGURES}
        for group in self.router.groups:
            names.update(f"{figure}_{group}" for figure in GROUP_FIGURES)
        return names

    def _term_names(self) -> list[str]:
        """Return the names of the alignment's terms, as `forward` makes them."""
        names = self.criteria.value_names()
        if self.learns and self.router_grad == "aux":
            names.append("router")
        if self.learns and self.entropy_weight:
            names.append("entropy")
        return names

    def _check_router(self) -> None:
        for group in self.router.groups:
            if group in ("inter", "membership"):
                raise ConfigError(
                    f"router.groups: {group!r} is used in the names of diagnostics; choose another."
                )
        prefix = len(self.router.prefix)
        if prefix and prefix != self.geometry.prefix:
            raise ConfigError(
                f"router.prefix: {prefix} levels for the backbone's {self.geometry.prefix} prefix "
                "tokens; one level for each is needed."
            )
        if self.entropy_weight and not self.learns:
            raise ConfigError(
                f"entropy_weight: this {type(self.router).__name__} learns nothing, so the "
                "term has no effect; leave out entropy_weight and entropy_floor."
            )
        if self.router_weight != 1 and self.router_grad != "aux":
            raise ConfigError(
                f"router_weight: has no effect with router_grad={self.router_grad!r}, only with "
                "'aux'."
            )

    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Compare the projected tap with the routed target.

        Args:
            view: The step's values; `view.out.taps` holds the tapped block.
            features: {prior: {level: tensor}}, detached and repeated for the views.
            progress: Where the run stands.

        Returns:
            The terms "<alignment>/<criterion>" (or "<alignment>/<criterion>/<item>"),
            "<alignment>/router" and "<alignment>/entropy", and the diagnostics.
        """
        tokens = view.out.tokens(self.tap)
        if not self.router.prefix:  # without a target for them, prefix tokens are left out
            tokens = tokens.without_prefix()
        content = tokens.without_prefix().tokens  # [B, N, D]
        if self.router_grad != "target":  # the router's own term must not reach the backbone
            content = content.detach()

        intra, inter = self.router.weights(view.noised.sample_t, content)
        target = self.router.mix(features[self.source], intra, inter)  # T [B, N, C]
        target = tokens.gather_from(target)  # of the tokens that are in the tapped block
        pred = self.projector(tokens)  # P [B, N, C]
        goal = target if self.router_grad == "target" else target.detach()

        weight = self.weight(progress)
        token_weights = self.token_weights(pred, goal)
        values = {
            name: criterion(pred, goal, token_weights)
            for name, criterion in self.criteria.pair_losses()
        }
        compared = self.criteria.comparisons(values)
        terms = [comparison.term(self.name, weight) for comparison in compared]
        if self.learns and self.router_grad == "aux":
            terms.append(self.router_term(pred, target, weight))
        if self.learns and self.entropy_weight:
            value = entropy_term(intra, inter, self.entropy_floor)
            terms.append(Term(f"{self.name}/entropy", value, self.entropy_weight))

        diagnostics = {}
        if progress.diagnose:
            diagnostics = self.diagnostics(target.detach(), intra, inter)
        losses = Losses(tuple(terms), diagnostics)
        if self.training:
            self.weight.observe(losses, progress)
        return losses

    def token_weights(self, pred: Tensor, target: Tensor) -> Tensor | None:
        """Return weights of the tokens, [B, N] of mean 1 and without gradient, or None for equal
        weights. Override it for a method that weighs tokens.

        Args:
            pred: Projected tokens [B, N, C].
            target: Target [B, N, C].
        """
        return None

    def router_term(self, pred: Tensor, target: Tensor, weight: float | Tensor) -> Term:
        """Return the router's own term under "aux": the criteria with a detached projection."""
        pred = pred.detach()
        total = target.new_zeros(())
        for comparison in self.criteria.compare(pred, target, self.token_weights(pred, target)):
            if comparison.share is not None:
                total = total + comparison.share * comparison.value
        return Term(f"{self.name}/router", total, weight * self.router_weight)

    @torch.no_grad()
    def diagnostics(
        self, target: Tensor, intra: Mapping[str, Tensor], inter: Tensor
    ) -> dict[str, Tensor]:
        """Return figures that reveal a trivial target or a collapsed router, 0-d each.

        Args:
            target: Target [B, N, C].
            intra: {group: alphas [B, L]}.
            inter: Betas [B, G].

        Returns:
            A dict of these figures, each named "<alignment>/<figure>".

            - constant_cosine: the largest mean cosine that a constant vector can reach, which is
              the length of the mean of the target's unit vectors.
            - target_rms: root mean square of the target.
            - beta_<group>: mean over the batch.
            - entropy_inter, entropy_<group>: mean entropies in nats.
            - those of `collapse_figures` and `membership_figures`, if the router learns.
        """
        target = target.float()
        unit = target * (target.square().sum(-1, keepdim=True) + 1e-16).rsqrt()
        found = {
            "constant_cosine": unit.mean((0, 1)).norm(),
            "target_rms": target.square().mean().sqrt(),
            "entropy_inter": entropy(inter).mean(),
        }
        for column, (group, alpha) in enumerate(intra.items()):
            found[f"entropy_{group}"] = entropy(alpha).mean()
            found[f"beta_{group}"] = inter[:, column].mean()
        if self.learns:
            found |= collapse_figures(intra, inter, self.entropy_floor)
            found |= membership_figures(self.router.membership())
        return {f"{self.name}/{figure}": value for figure, value in found.items()}

    def ended(self, progress: Progress) -> bool:
        """Whether the weight is 0 from this step on and scales every term: neither a discriminator
        nor the term against collapse is left. A subclass that adds a term overrides it."""
        weighted = self.criteria.all_weighted and not (self.learns and self.entropy_weight)
        return weighted and self.weight.ended(progress)

    def summary(self) -> str:
        """Describe the alignment in one line."""
        groups = [f"{group}: {', '.join(names)}" for group, names in self.router.groups.items()]
        return f"block {self.tap} <- {self.source} ({'; '.join(groups)})"

    def probes(self) -> dict[str, Callable[[], Any]]:
        """Return the projector's call on the meta device."""
        prefix = self.geometry.prefix if self.router.prefix else 0
        return {"projector": meta_call(self.projector, self.geometry, prefix)}
