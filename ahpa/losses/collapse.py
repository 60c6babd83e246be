"""Against a router's collapse onto one level or one group (docs/method.md): its entropy as a term, and as figures.

A row is a distribution that the router gives for each sample: the betas [B, G], and each group's alphas [B, L]. A row of
one entry cannot collapse and is left out; betas of a sigmoid are judged by their shares, as `entropy` takes them.
[ours] AHPA has no such term.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..registry.numerics import entropy


def check_floor(floor: float | None, weight: float) -> float | None:
    """ValueError unless None, or a number in (0, 1] with a weight above 0."""
    if floor is None:
        return None
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 < floor <= 1:
        raise ValueError(
            f"entropy_floor: must be above 0 and at most 1, a share of the largest entropy, got {floor!r}."
        )
    if not weight:
        raise ValueError("entropy_floor: has no effect without an entropy_weight above 0.")
    return float(floor)


def rows(intra: Mapping[str, Tensor], inter: Tensor) -> list[tuple[str, Tensor]]:
    """[(name, weights [B, n])] of more than one entry: 'inter', then the groups."""
    return [(name, row) for name, row in (("inter", inter), *intra.items()) if row.shape[-1] > 1]


def entropy_term(intra: Mapping[str, Tensor], inter: Tensor, floor: float | None) -> Tensor:
    """What is added to the objective, in nats: without a floor minus the sum of all rows' entropies H, a pull towards
    uniform weights that never ends; with one the sum of max(0, floor log n - H), which is zero above the floor.

    The mean over the batch is taken last, so the floor holds for each sample, that is at each t, and one t cannot pay
    for another. The hinge is not squared: its pull has the same strength however little is missing, so that a large
    enough weight holds the floor instead of settling below it.
    """
    if floor is None:
        return -(entropy(inter).mean() + sum(entropy(alpha).mean() for alpha in intra.values()))
    missing = [(floor * math.log(row.shape[-1]) - entropy(row)).relu().mean() for _, row in rows(intra, inter)]
    return sum(missing, inter.new_zeros(()))


@torch.no_grad()
def collapse_figures(intra: Mapping[str, Tensor], inter: Tensor, floor: float | None) -> dict[str, Tensor]:
    """evenness_inter, evenness_<group>: H / log n, 1 for uniform weights and 0 for one of all; evenness: the least of
    them; below_floor: share of samples with any row below the floor. Of the batch's mean alphas the largest,
    alpha_max_<group>, and its place in the group from 0, alpha_top_<group>."""
    even = {name: entropy(row) / math.log(row.shape[-1]) for name, row in rows(intra, inter)}  # [B] each
    out = {f"evenness_{name}": share.mean() for name, share in even.items()}
    if even:
        out["evenness"] = torch.stack(list(out.values())).min()
        if floor is not None:
            out["below_floor"] = (torch.stack(list(even.values())) < floor).any(0).float().mean()
    for group, alpha in intra.items():
        largest, place = alpha.mean(0).max(-1)
        out |= {f"alpha_max_{group}": largest, f"alpha_top_{group}": place.float()}
    return out


@torch.no_grad()
def membership_figures(membership: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of learned groups: entropy_membership, the levels' mean entropy over groups in nats (0: a hard partition), and
    effective_groups, exp of the entropy of the groups' total shares (1: one group has all levels, G: equal groups)."""
    if not membership:
        return {}
    shares_LG = torch.stack(list(membership.values()), dim=-1)
    return {
        "entropy_membership": entropy(shares_LG).mean(),
        "effective_groups": entropy(shares_LG.mean(0)).exp(),
    }
