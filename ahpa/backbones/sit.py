"""SiT, the scalable interpolant transformer (arXiv:2401.08740), and DiT (arXiv:2212.09748), whose architecture it has.

Must match: the published layouts' keys and forward pass (REPA's fork, which predicts `in_channels` and no variance; DiT).
Sizes of the papers (depth x width x heads): S 12 x 384 x 6, B 12 x 768 x 12, L 24 x 1024 x 16, XL 28 x 1152 x 16.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams
from .base import PatchTransformer
from .layers import Block, FinalLayer, LabelEmbedder


@BACKBONES.register_module()
class SiT(PatchTransformer):
    """SiT with adaLN-Zero, fixed sin-cos positions and taps by block number (1-based).

    input_size (the latent's side) and in_channels are derived. depth, hidden_size, num_heads, patch_size: the
    architecture; num_classes: labels 0..num_classes-1, and num_classes is the null class; qk_norm: LayerNorm over each
    head's q and k; gradient_checkpointing: blocks are computed again in the backward pass; learn_sigma: the output has
    twice the channels, the prediction and then v of its variance; time_scale: t is multiplied by it before the sinusoid,
    and rounded where it is above 1 (a number of steps: whole numbers are embedded); reversed_time: the network was
    trained with t = 1 as data, as the published SiT is, so it is given 1 - t and its velocity is negated. ValueError for
    sizes that do not divide or are not above 0.
    """

    demo = dict(depth=6, hidden_size=192, num_heads=6, patch_size=2, num_classes=10)

    def __init__(self, *, input_size: int, in_channels: int, num_classes: int = 1000, depth: int, hidden_size: int,
                 num_heads: int, patch_size: int = 2, mlp_ratio: float = 4.0, qk_norm: bool = False,
                 gradient_checkpointing: bool = False, learn_sigma: bool = False,
                 time_scale: float = 1.0, reversed_time: bool = False):  # fmt: skip
        super().__init__(input_size=input_size, in_channels=in_channels, depth=depth, hidden_size=hidden_size,
                         num_heads=num_heads, patch_size=patch_size, gradient_checkpointing=gradient_checkpointing,
                         learn_sigma=learn_sigma, time_scale=time_scale, reversed_time=reversed_time,
                         num_classes=num_classes, mlp_ratio=mlp_ratio)  # fmt: skip
        self.num_classes = num_classes
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self._initialise()

    def _initialise(self):
        self.initialise(small=(self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]))

    def walk(self, x: Streams, t: Tensor, cond: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """cond: labels [B]. The condition of every block is the time's and the label's sum [B, D]."""
        h, c = self.embed(x), self.t_embedder(self.steps_of(t)) + self.y_embedder(cond)
        for block in self.blocks:
            h = self.run(block, h, c)
            yield h, c


@BACKBONES.register_module()
class DiT(SiT):
    """DiT: SiT's transformer over 1000 discrete steps, whose output is the noise and its variance (arXiv:2212.09748)."""

    def __init__(self, *, learn_sigma: bool = True, time_scale: float = 1000.0, **options):
        super().__init__(learn_sigma=learn_sigma, time_scale=time_scale, **options)
