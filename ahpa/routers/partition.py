"""A learned partition: which level belongs to which group is learned too.

[ours] AHPA's Appendix J names the fixed boundaries and the fixed number of groups as limits and
defines no alternative.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..registry import ROUTERS
from ..registry.contracts import Geometry, LevelSpec
from ..registry.validation import number, positive
from .base import LearnedRouter
from .grouping import Groups, resolve_groups
from .learned import Encoding, build_encoding, make_mlp


@ROUTERS.register_module()
class PartitionRouter(LearnedRouter):
    """Every group weighs all levels, each in proportion to its learned membership [ours].

    The membership M_lg = softmax over groups of (membership_logits_lg / temperature): level l
    belongs to the G groups with shares that sum to 1, the same at every t. An MLP of t, as in
    `MLPRouter`, gives one score s_l(t) for each level and one beta for each group:

        alpha_gl(t) = M_lg exp(s_l(t)) / sum over l' of M_l'g exp(s_l'(t))

    With shares of 0 and 1 this is `MLPRouter`.

    Args:
        levels: The prior's levels, shallow -> deep.
        geometry: Sizes of the model.
        groups: The initial partition in any form (see `resolve_groups`); all levels that it names
            take part.
        prefix: Vector levels that become the target's first tokens.
        resize: "bilinear" or "adaptive".
        pad: Whether levels may differ in channels; narrower ones are zero-padded.
        beta: "softmax" or "sigmoid"; see `LearnedRouter`.
        start: Lead of a level's initial groups in the logits, at least 0. 2 gives a share of .71
            in one of four groups, 0 makes all groups alike.
        temperature: Above 0; a lower one makes shares sharper and learns them faster.
        encoding: Config of the time encoding; `LinearEncoding` of width 128 by default.
        hidden_dim: Width of the MLP's inner layers.
        depth: Number of linear layers of the MLP.
        zero_init: Whether to start from equal scores and betas.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, LevelSpec],
        geometry: Geometry,
        groups: Groups = "G1+G2+G3+G4",
        prefix: str | Sequence[str] = (),
        resize: str = "bilinear",
        pad: bool = True,
        beta: str = "softmax",
        start: float = 2.0,
        temperature: float = 1.0,
        encoding: Encoding = None,
        hidden_dim: int = 256,
        depth: int = 4,
        zero_init: bool = False,
    ) -> None:
        initial = resolve_groups(groups, levels, mixed=pad)
        named = set().union(*initial.values())
        pool = tuple(name for name in levels if name in named)
        super().__init__(
            levels=levels,
            geometry=geometry,
            groups=dict.fromkeys(initial, pool),
            prefix=prefix,
            resize=resize,
            pad=pad,
            beta=beta,
        )
        lead = number("start", start, least=0)
        self.temperature = positive("temperature", temperature)
        member = [[float(name in names) for names in initial.values()] for name in pool]
        self.membership_logits = nn.Parameter(lead * torch.tensor(member))  # [L, G]
        self.encoding = build_encoding(encoding)
        outputs = len(pool) + len(initial)
        self.mlp = make_mlp(self.encoding.dim, hidden_dim, outputs, depth, zero_init=zero_init)

    def logits(self, t: Tensor, content: Tensor | None) -> Tensor:
        """Return the logits [B, G L + G]: s_l(t) + log M_lg group by group, then the betas."""
        count = len(self.membership_logits)
        scores, betas = self.mlp(self.encoding(t)).tensor_split([count], dim=-1)
        log_shares = (self.membership_logits / self.temperature).log_softmax(-1).T  # [G, L]
        alphas = [scores + log_share for log_share in log_shares]
        return torch.cat([*alphas, betas], dim=-1)

    def membership(self) -> dict[str, Tensor]:
        """Return {group: [L], the share of each level that belongs to it}."""
        shares = (self.membership_logits / self.temperature).softmax(-1)  # [L, G]
        return dict(zip(self.groups, shares.unbind(-1), strict=True))
