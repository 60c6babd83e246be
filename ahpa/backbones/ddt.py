"""Decoupled transformers: a condition encoder and a velocity decoder, which reads the encoder per
token (the split of DDT, arXiv:2504.05741, on SiT's own blocks as DUPA uses it).

The encoder's tokens h and the embedded time make s = SiLU(time + h) [B, N, D]; in the decoder's
blocks s takes the place of the condition, so that every token has a modulation of its own.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ..registry import BACKBONES, ConfigError
from ..registry.contracts import Streams, Tap, TextCond, TokenPlan
from ..registry.validation import integer
from .base import BlockState, PatchTransformer
from .lanes import Lanes
from .layers import PatchEmbed, add_to_time, per_token
from .mmdit import MMDiT
from .sit import DiT, SiT


class Decoupled(PatchTransformer):
    """Mixin before a transformer, whose constructor must call `add_decoder`.

    Blocks 1..encoder_depth see the noised latent and the condition; the others see the latent
    again, through an embedding of their own, and s. The tokens tap of block `encoder_depth` is s,
    which the decoder reads; other taps are those of the blocks.
    """

    def add_decoder(self, encoder_depth: int) -> None:
        """Split the blocks after block `encoder_depth`, and add the decoder's patch embedding.

        Raises:
            ConfigError: If this leaves no block to the encoder or the decoder.
        """
        if self.depth < 2:
            raise ConfigError(f"depth: must be at least 2 for two halves, got {self.depth}.")
        most = self.depth - 1
        self.encoder_depth = integer("encoder_depth", encoder_depth, least=1, most=most)
        self.decoder_embedder = PatchEmbed(
            in_channels=self.in_channels,
            hidden_size=self.hidden_size,
            patch_size=self.patch_size,
        )
        self.decoder_embedder.initialise()

    def _check_plan(self, plan: TokenPlan, taps: frozenset[Tap]) -> None:
        super()._check_plan(plan, taps)
        if plan.route is not None and plan.route.skips(self.encoder_depth):
            raise ConfigError(
                f"{type(self).__name__}: a route cannot pass block {self.encoder_depth}, whose "
                "tokens the decoder reads; let it lie in the encoder or in the decoder."
            )

    def embed_for_decoder(self, x: Streams) -> Tensor:
        """Embed the latent as the decoder's tokens [B, N, D]."""
        return self.decoder_embedder(x["image"]) + self.pos_embed


@BACKBONES.register_module()
class DDT(Decoupled, SiT):
    """SiT in two halves, the model of DUPA.

    Args:
        encoder_depth: Number of blocks of the condition encoder; the rest are the decoder.

    The other arguments are those of `SiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        encoder_depth: int = 8,
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
            num_classes=num_classes,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
        self.add_decoder(encoder_depth)

    def walk(
        self, x: Streams, t: Tensor, cond: Tensor, keep: frozenset[int], lanes: Lanes
    ) -> Iterator[BlockState]:
        """Yield the state after each block."""
        time = self.t_embedder(self.time_input(t))
        h = self.embed(x)
        c = add_to_time(time, self.y_embedder(cond))
        for number, block in enumerate(self.blocks, start=1):
            h, own = lanes.enter(number, h), lanes.cond(number, c)
            h, heads = self.run(block, h, own, number in keep, lanes.mask(number))
            if number == self.encoder_depth:
                c = per_token(time) + h  # blocks apply the SiLU of s themselves
                yield BlockState(F.silu(c), c, heads)
                h = self.embed_for_decoder(x)
            else:
                yield BlockState(h, c, heads)
                h = lanes.leave(number, h)


@BACKBONES.register_module()
class DDTDiT(DDT, DiT):
    """DiT in two halves: DDT over discrete steps, which predicts the noise and its variance.

    Args:
        encoder_depth: Number of blocks of the condition encoder; the rest are the decoder.

    The other arguments are those of `DiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        encoder_depth: int = 8,
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
            encoder_depth=encoder_depth,
            num_classes=num_classes,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )


@BACKBONES.register_module()
class DDTMMDiT(Decoupled, MMDiT):
    """MMDiT in two halves: a joint encoder, and a decoder whose image half reads s per token.

    How DDT's split extends to text is our choice: in the decoder the image half embeds the noised
    latent again and is modulated by s = SiLU(time + the encoder's image tokens). The text tokens
    continue from the encoder into the decoder's blocks, whose text half keeps MMDiT's condition.
    The final layer is modulated by s.

    Args:
        encoder_depth: Number of blocks of the condition encoder; the rest are the decoder.

    The other arguments are those of `MMDiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        encoder_depth: int = 8,
        depth: int = 24,
        hidden_size: int = 768,
        num_heads: int = 24,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        text_dim: int = 768,
        pooled_dim: int | None = None,
        qk_norm: bool = False,
        adaln_zero: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            text_dim=text_dim,
            pooled_dim=pooled_dim,
            qk_norm=qk_norm,
            adaln_zero=adaln_zero,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.add_decoder(encoder_depth)

    def walk(
        self, x: Streams, t: Tensor, cond: TextCond, keep: frozenset[int], lanes: Lanes
    ) -> Iterator[BlockState]:
        """Yield the state of the image tokens after each block."""
        h = self.embed(x)
        text, time, text_c, image_c = self.conditions(t, cond)
        for number, block in enumerate(self.blocks, start=1):
            h, own = lanes.enter(number, h), lanes.cond(number, image_c)
            text, h, heads = self.run(block, text, h, text_c, own, number in keep)
            if number == self.encoder_depth:
                image_c = per_token(time) + h  # blocks apply the SiLU of s themselves
                yield BlockState(F.silu(image_c), image_c, heads)
                h = self.embed_for_decoder(x)
            else:
                yield BlockState(h, image_c, heads)
                h = lanes.leave(number, h)
