"""An alignment: a tapped block of the backbone is pulled towards a routed target (AHPA, Figure 3 and eq. 5).

tap -> projector -> P [B, N, C];  prior -> router(t) -> T [B, N, C];  loss = weight * criterion(P, T)

Nothing but this loss reaches the router (docs/method.md): `router_grad` says how. No diagnostic holds the word "loss",
since every key that does is summed into the objective.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..registry import ALIGNMENTS, LOSSES, PROJECTORS, ROUTERS, build, nearest
from ..registry.contracts import Backbone, LevelSpec, Step, Tokens
from ..registry.numerics import entropy
from .collapse import check_floor, collapse_figures, entropy_term, membership_figures
from .schedules import build_weight, check_weight

ROUTER_GRADS = ("target", "aux", "none")
COSINE = dict(type="CosineLoss")


def check_tap(tap: int, backbone: Backbone) -> None:
    """ValueError for what is no block of the backbone."""
    if not isinstance(tap, int) or not 1 <= tap <= backbone.depth:
        raise ValueError(f"tap: {tap!r} is not a block of the backbone; blocks are 1..{backbone.depth}.")


def check_criteria(name: str, criteria) -> Mapping:
    """The criteria of the alignment of that name, the cosine if none are given. ValueError for names that cannot be."""
    criteria = dict(cosine=COSINE) if criteria is None else criteria
    if not isinstance(criteria, Mapping) or not criteria:
        raise ValueError("criteria: at least one pair loss is needed, as {name: pair loss}.")
    for key in (name, *criteria):
        if "loss" in key or "." in key:
            raise ValueError(f"{key!r} cannot name an alignment or a criterion: no 'loss' (it would be summed into "
                             "the objective) and no dot.")  # fmt: skip
    return criteria


@ALIGNMENTS.register_module()
class Alignment(nn.Module):
    """One tapped block, one prior, a router, a projector and any number of criteria.

    tap: block number from 1. source: the prior's name. criteria: {name: pair loss}, each with an optional `weight` of
    its own. weight: a number or a schedule. router_grad: 'target' (the router learns through the target), 'aux' (the
    criteria see a detached target; the router has its own term of `router_weight`), 'none' (the router is frozen).
    entropy_weight: of a term against collapse: without `entropy_floor` a bonus for the entropies of alpha and beta; with
    it (a share of the largest entropy, in (0, 1]) a penalty that acts below the floor only (see `entropy_term`).
    ValueError for what does not fit.
    """

    def __init__(self, *, name: str, spec: Mapping[str, LevelSpec], backbone: Backbone, tap: int, source: str,
                 router=None, projector=None, criteria=None, weight=1.0, router_grad: str = "target",
                 router_weight: float = 1.0, entropy_weight: float = 0.0, entropy_floor: float | None = None):  # fmt: skip
        super().__init__()
        where = f"model.alignments.{name}"
        check_tap(tap, backbone)
        if router_grad not in ROUTER_GRADS:
            raise ValueError(f"router_grad: {router_grad!r} is unknown{nearest(router_grad, ROUTER_GRADS)}")
        self.name, self.tap, self.source, self.router_grad = name, tap, source, router_grad
        self.weight = build_weight(weight, where=f"{where}.weight")
        self.router_weight = check_weight("router_weight", router_weight)
        self.entropy_weight = check_weight("entropy_weight", entropy_weight)
        self.entropy_floor = check_floor(entropy_floor, self.entropy_weight)
        self.router = build(ROUTERS, router or dict(type="StaticRouter"), where=f"{where}.router",
                            spec=spec, grid=backbone.grid, content_dim=backbone.hidden_size)  # fmt: skip
        self.levels = self.router.used_levels
        if self.router.prefix and len(self.router.prefix) != getattr(backbone, "prefix", 0):
            raise ValueError(f"router.prefix: {len(self.router.prefix)} levels for the backbone's "
                             f"{getattr(backbone, 'prefix', 0)} prefix tokens.")  # fmt: skip
        sizes = dict(dim=backbone.hidden_size, out_dim=self.router.out_dim)
        self.projector = build(PROJECTORS, projector or dict(type="ConvProjector"), where=f"{where}.projector", **sizes)
        self._build_criteria(check_criteria(name, criteria), where)
        if router_grad == "none":
            self.router.requires_grad_(False)
        self.learns = any(p.requires_grad for p in self.router.parameters())
        if self.entropy_weight and not self.learns:
            raise ValueError(f"entropy_weight: this {type(self.router).__name__} learns nothing, so no term can move it; "
                             "leave entropy_weight and entropy_floor out.")  # fmt: skip
        if self.router_weight != 1 and router_grad != "aux":
            raise ValueError(f"router_weight: has no effect with router_grad={router_grad!r}, only with 'aux'.")

    def _build_criteria(self, criteria, where):
        for key in ("router", "entropy"):
            if key in criteria:
                raise ValueError(f"criteria: {key!r} is the name of the router's own term; choose another.")
        self.criteria, self.shares = nn.ModuleDict(), {}
        for key, cfg in criteria.items():
            share = 1.0
            if isinstance(cfg, Mapping) and "weight" in cfg:
                share = check_weight(f"criteria.{key}.weight", cfg["weight"])
                cfg = {option: value for option, value in cfg.items() if option != "weight"}
            self.criteria[key] = build(LOSSES, cfg, where=f"{where}.criteria.{key}", dim=self.router.out_dim)
            self.shares[key] = share

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Reads step.out.taps, step.noisy.t and step.features[source] -> terms 'loss_<name>_<criterion>' (weighted) and
        diagnostics '<name>/...'."""
        tokens = step.out.taps[self.tap]
        if not self.router.prefix:  # tokens that are not of the grid have no target then
            tokens = Tokens(tokens.tokens[:, tokens.prefix :], 0, tokens.grid)
        content = tokens.tokens[:, tokens.prefix :]  # [B, N, D]
        if self.router_grad != "target":  # the router's own term must not reach the backbone through what it reads
            content = content.detach()
        intra, inter = self.router.weights(step.noisy.t, content)
        target = self.router.mix(step.features[self.source], intra, inter)  # T [B, N, C]
        pred = self.projector(tokens)  # P [B, N, C]
        weight, out = self.weight(step), {}
        for key, value in self.compare(pred, target if self.router_grad == "target" else target.detach()).items():
            out[f"loss_{self.name}_{key}"] = self.scale(key, weight) * value
            out[f"{self.name}/{key}"] = value.detach()
        if self.learns:
            out |= self.router_terms(pred, target, intra, inter, weight)
        if step.diagnose:
            out |= self.diagnostics(target.detach(), intra, inter)
        return out

    def compare(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Each criterion's bare value; a criterion that returns a dict gives one entry an item."""
        values = {}
        for key, criterion in self.criteria.items():
            value = criterion(pred, target)
            parts = {f"{key}_{part}": v for part, v in value.items()} if isinstance(value, Mapping) else {key: value}
            values |= parts
        return values

    def owner(self, key: str) -> str:
        """The criterion that a term belongs to."""
        return max((name for name in self.shares if key == name or key.startswith(f"{name}_")), key=len)

    def scale(self, key: str, weight: float) -> float:
        """The weight of a term: 1 for what a criterion names `unweighted`, such as a critic's own objective."""
        return 1.0 if self.is_own(key) else weight * self.shares[self.owner(key)]

    def is_own(self, key: str) -> bool:
        """Whether a term is a criterion's own objective, which trains nothing but its parameters."""
        owner = self.owner(key)
        return key in {f"{owner}_{part}" for part in getattr(self.criteria[owner], "unweighted", ())}

    def router_terms(self, pred, target, intra, inter, weight) -> dict[str, Tensor]:
        """The router's own term under 'aux', and the one against collapse."""
        out = {}
        if self.router_grad == "aux":
            values = self.compare(pred.detach(), target)
            total = sum(self.shares[self.owner(key)] * value for key, value in values.items() if not self.is_own(key))
            out[f"loss_{self.name}_router"] = weight * self.router_weight * total
        if self.entropy_weight:
            out[f"loss_{self.name}_entropy"] = self.entropy_weight * entropy_term(intra, inter, self.entropy_floor)
        return out

    @torch.no_grad()
    def diagnostics(self, target: Tensor, intra: Mapping[str, Tensor], inter: Tensor) -> dict[str, Tensor]:
        """What tells of a target that asks for little, or of a router that has collapsed.

        constant_cosine: the mean cosine that the best constant vector reaches, |mean of the unit targets|; target_rms;
        beta_<group>: batch means; entropy_inter, entropy_<group>: nats. Of a router that learns, also those of
        `collapse_figures` and `membership_figures`.
        """
        target = target.float()
        unit = target * (target.square().sum(-1, keepdim=True) + 1e-16).rsqrt()
        out = {"constant_cosine": unit.mean((0, 1)).norm(), "target_rms": target.square().mean().sqrt()}
        out["entropy_inter"] = entropy(inter).mean()
        for column, (group, alpha) in enumerate(intra.items()):
            out[f"entropy_{group}"], out[f"beta_{group}"] = entropy(alpha).mean(), inter[:, column].mean()
        if self.learns:
            out |= collapse_figures(intra, inter, self.entropy_floor) | membership_figures(self.router.membership())
        return {f"{self.name}/{key}": value for key, value in out.items()}
