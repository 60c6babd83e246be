"""SiT (arXiv:2401.08740), and DiT (arXiv:2212.09748), which has the same architecture.

Must match the keys and the forward pass of the published layouts: REPA's fork of SiT, which has no
variance, and DiT. Sizes of the papers (depth x width x heads): S 12 x 384 x 6, B 12 x 768 x 12,
L 24 x 1024 x 16, XL 28 x 1152 x 16.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams
from ..registry.validation import boolean, positive_int
from .base import BlockState, PatchTransformer
from .lanes import Lanes
from .layers import Block, FinalLayer, LabelEmbedder, add_to_time, linear_layers


@BACKBONES.register_module()
class SiT(PatchTransformer):
    """Scalable Interpolant Transformer (arXiv:2401.08740): adaLN-Zero, fixed sin-cos positions.

    Args:
        input_size: Side of the latent; derived from the tokenizer.
        in_channels: Channels C of the latent; derived from the tokenizer.
        depth: Number of blocks.
        hidden_size: Width D, a multiple of 4.
        num_heads: Attention heads of a block; must divide `hidden_size`.
        num_classes: Number of labels; label `num_classes` is the null class used for guidance.
        patch_size: Side p of the patch of latents that makes one token.
        mlp_ratio: Hidden width of the MLPs, relative to D.
        qk_norm: Whether to apply a LayerNorm to the queries and keys of each head.
        gradient_checkpointing: Whether to recompute blocks in the backward pass to save memory.
        learn_sigma: Whether the output has 2C channels: the prediction, then its variance.
        time_scale: Factor on t before it is embedded; above 1 the product is rounded, since it
            counts discrete steps.
        reversed_time: For checkpoints trained with t = 1 as data (the published SiT): t is
            mirrored and the velocity negated.

    Raises:
        ConfigError: If a size is not positive, or if sizes do not divide.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        num_classes: int = 1000,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        gradient_checkpointing: bool = False,
        learn_sigma: bool = False,
        time_scale: float = 1.0,
        reversed_time: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
        boolean("qk_norm", qk_norm)
        self.num_classes = positive_int("num_classes", num_classes)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.initialise()

    def initialise(self) -> None:
        """Set the initial weights: adaLN-Zero."""
        labels = self.y_embedder.embedding_table
        self.initialise_adaln_zero(small=[labels, *linear_layers(self.t_embedder)])

    def blank_cond(self, count: int, device: torch.device | str) -> Tensor:
        """Return labels [count] of class 0."""
        return torch.zeros(count, dtype=torch.long, device=device)

    def _check_condition(self, cond: Any) -> None:
        if not isinstance(cond, Tensor):
            raise ValueError(
                f"{type(self).__name__}: the condition must be labels [B], got "
                f"{type(cond).__name__}."
            )

    def walk(
        self, x: Streams, t: Tensor, cond: Tensor, keep: frozenset[int], lanes: Lanes
    ) -> Iterator[BlockState]:
        """Yield the state after each block; the condition is the sum of time and label."""
        h = self.embed(x)
        time = self.t_embedder(self.time_input(t))
        c = add_to_time(time, self.y_embedder(cond))
        for number, block in enumerate(self.blocks, start=1):
            h, own = lanes.enter(number, h), lanes.cond(number, c)
            h, heads = self.run(block, h, own, number in keep, lanes.mask(number))
            yield BlockState(h, c, heads)
            h = lanes.leave(number, h)


@BACKBONES.register_module()
class DiT(SiT):
    """Diffusion Transformer (arXiv:2212.09748): SiT's network over 1000 discrete steps, which
    predicts the noise and its variance.

    Args are those of `SiT`, with other defaults for `learn_sigma` and `time_scale`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        num_classes: int = 1000,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        gradient_checkpointing: bool = False,
        learn_sigma: bool = True,
        time_scale: float = 1000.0,
        reversed_time: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_classes=num_classes,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
