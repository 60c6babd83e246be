"""A learned partition: which level belongs to which group is learned too, instead of the paper's fixed boundaries.

[ours] AHPA's Appendix J names fixed boundaries and a fixed number of groups as limits and defines nothing in their place.
"""

import math

import torch
from torch import Tensor, nn

from ..registry import ROUTERS
from .base import LearnedRouter
from .grouping import resolve_groups
from .learned import build_encoding, make_mlp


@ROUTERS.register_module()
class PartitionRouter(LearnedRouter):
    """Every group weighs all levels, each as far as it belongs to the group, which is learned [ours].

    M_lg = softmax over groups of (membership_logits_lg / temperature): level l belongs to the G groups with shares that
    sum to 1, at every t alike. An MLP of t, as in `MLPRouter`, gives one score s_l(t) a level and one beta a group:
    alpha_gl(t) = M_lg exp(s_l(t)) / sum over l' of M_l'g exp(s_l'(t)). With shares of 0 and 1 this is `MLPRouter`.

    groups: where the partition starts, in any form and number; all levels that it names take part. start: lead of a
        level's own groups in the logits (2: a share of .71 in one of four groups; 0: all groups alike).
    temperature: above 0; lower makes shares sharper and faster to learn. pad: levels of fewer channels are widened.
    """

    def __init__(
        self,
        *,
        spec,
        groups="G1+G2+G3+G4",
        start: float = 2.0,
        temperature: float = 1.0,
        encoding=None,
        hidden_dim: int = 256,
        depth: int = 4,
        zero_init: bool = False,
        pad: bool = True,
        **options,
    ):
        begin = resolve_groups(groups, spec, mixed=pad)
        pool = tuple(name for name in spec if any(name in names for names in begin.values()))
        super().__init__(spec=spec, groups=dict.fromkeys(begin, pool), pad=pad, **options)
        if not isinstance(start, int | float) or not 0 <= start < math.inf:
            raise ValueError(f"start: must be a number of at least 0, got {start!r}.")
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature: must be a number above 0, got {temperature!r}.")
        self.temperature = float(temperature)
        own = torch.tensor([[float(name in names) for names in begin.values()] for name in pool])
        self.membership_logits = nn.Parameter(start * own)  # [L, G]
        self.encoding = build_encoding(encoding)
        self.mlp = make_mlp(self.encoding.dim, hidden_dim, len(pool) + len(begin), depth, zero_init=zero_init)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        scores_BL, beta_BG = self.mlp(self.encoding(t)).tensor_split([len(self.membership_logits)], dim=-1)
        log_share_GL = (self.membership_logits / self.temperature).log_softmax(-1).T
        return torch.cat([*(scores_BL + share_L for share_L in log_share_GL), beta_BG], dim=-1)

    def membership(self) -> dict[str, Tensor]:
        shares_LG = (self.membership_logits / self.temperature).softmax(-1)
        return dict(zip(self.groups, shares_LG.unbind(-1), strict=True))
