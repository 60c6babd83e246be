"""Against a router's collapse onto one level or one group: its entropy as a term and as figures.

A row is a distribution that the router gives for each sample: the betas [B, G], and each group's
alphas [B, L]. A row with one entry cannot collapse and is left out; sigmoid betas are judged by
their shares, as `entropy` normalises them. [ours] AHPA has no such term.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..registry import ConfigError
from ..registry.numerics import entropy
from ..registry.validation import is_number


def check_floor(floor: float | None, weight: float) -> float | None:
    """Return a valid entropy floor.

    Args:
        floor: A share of the largest entropy in (0, 1], or None.
        weight: The entropy weight, which must be above 0 for a floor to have an effect.

    Raises:
        ConfigError: If the floor is out of range, or has no effect.
    """
    if floor is None:
        return None
    if not is_number(floor) or not 0 < floor <= 1:
        raise ConfigError(
            "entropy_floor: must be above 0 and at most 1, a share of the largest entropy, "
            f"got {floor!r}."
        )
    if not weight:
        raise ConfigError("entropy_floor: has no effect without an entropy_weight above 0.")
    return float(floor)


def rows(intra: Mapping[str, Tensor], inter: Tensor) -> list[tuple[str, Tensor]]:
    """List (name, weights [B, n]) of all rows with n > 1: "inter", then the groups."""
    found = [("inter", inter), *intra.items()]
    return [(name, row) for name, row in found if row.shape[-1] > 1]


def entropy_term(intra: Mapping[str, Tensor], inter: Tensor, floor: float | None) -> Tensor:
    """Return the term against collapse, 0-d, in nats.

    Without a floor it is minus the sum of all rows' mean entropies H: a pull towards uniform
    weights that never ends. With a floor it is the sum of max(0, floor log n - H), which is zero
    above the floor. The mean over the batch comes last, so the floor holds for each sample (that
    is, at each t). The hinge is not squared: its gradient has constant magnitude, so a large enough
    weight enforces the floor.

    Args:
        intra: {group: alphas [B, L]}.
        inter: Betas [B, G].
        floor: A share of the largest entropy log n, or None.
    """
    if floor is None:
        return -(entropy(inter).mean() + sum(entropy(alpha).mean() for alpha in intra.values()))
    missing = []
    for _, row in rows(intra, inter):
        least = floor * math.log(row.shape[-1])
        missing.append((least - entropy(row)).relu().mean())
    return sum(missing, inter.new_zeros(()))


@torch.no_grad()
def collapse_figures(
    intra: Mapping[str, Tensor], inter: Tensor, floor: float | None
) -> dict[str, Tensor]:
    """Return figures that show how far a router has collapsed, 0-d each.

    Args:
        intra: {group: alphas [B, L]}.
        inter: Betas [B, G].
        floor: The entropy floor, or None.

    Returns:
        A dict of these figures.

        - evenness_inter, evenness_<group>: mean of H / log n, 1 for uniform weights and 0 if one
          entry has all the weight.
        - evenness: the smallest of them.
        - below_floor: share of samples with any row below the floor (only with a floor).
        - alpha_max_<group>, alpha_top_<group>: the largest of the batch's mean alphas, and its
          index in the group from 0.
    """
    even = {name: entropy(row) / math.log(row.shape[-1]) for name, row in rows(intra, inter)}
    out = {f"evenness_{name}": share.mean() for name, share in even.items()}
    if even:
        out["evenness"] = torch.stack(list(out.values())).min()
        if floor is not None:
            below = torch.stack(list(even.values())) < floor  # [rows, B]
            out["below_floor"] = below.any(0).float().mean()
    for group, alpha in intra.items():
        largest, index = alpha.mean(0).max(-1)
        out[f"alpha_max_{group}"] = largest
        out[f"alpha_top_{group}"] = index.float()
    return out


@torch.no_grad()
def membership_figures(membership: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return figures of learned groups, 0-d each; empty if groups are fixed.

    Args:
        membership: {group: [L], share of each level that belongs to the group}.

    Returns:
        A dict of these figures.

        - entropy_membership: mean over levels of the entropy over groups in nats; 0 for a hard
          partition.
        - effective_groups: exp of the entropy of the groups' total shares; 1 if one group has all
          levels, G for groups of equal size.
    """
    if not membership:
        return {}
    shares = torch.stack(list(membership.values()), dim=-1)  # [L, G]
    return {
        "entropy_membership": entropy(shares).mean(),
        "effective_groups": entropy(shares.mean(0)).exp(),
    }
