"""Decoupled transformers: a condition encoder, and a velocity decoder that reads it per token (DDT's split, as DUPA uses
it: on SiT's blocks, with neither SwiGLU nor rotary positions).

The encoder's tokens h and the time make s = SiLU(t + h) [B, N, D]; in the decoder's blocks s takes the place of the
encoder's condition, so that every token has a modulation of its own. DUPA is on SiT alone; DiT has the split by options
alone, and what it means for MMDiT's text is inferred (`DDTMMDiT`).
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ..registry import BACKBONES
from ..registry.contracts import Streams, TextCond
from .base import PatchTransformer
from .layers import PatchEmbed
from .mmdit import MMDiT
from .sit import DiT, SiT


class Decoupled(PatchTransformer):
    """Mixin before a transformer: blocks 1..encoder_depth see the noised latent and the condition; the others see the
    latent anew, with an embedding of their own, and s.

    The tap of block `encoder_depth` is s, what the decoder reads; other taps are the blocks' outputs. ValueError for an
    encoder that leaves no block to the decoder.
    """

    def __init__(self, *, encoder_depth: int = 8, **options):
        super().__init__(**options)
        if not 1 <= encoder_depth < self.depth:
            raise ValueError(
                f"encoder_depth: must be in 1..{self.depth - 1} for {self.depth} blocks, got {encoder_depth!r}."
            )
        self.encoder_depth = encoder_depth
        self.decoder_embedder = PatchEmbed(in_channels=self.in_channels, hidden_size=self.hidden_size,
                                           patch_size=self.patch_size)  # fmt: skip
        self.decoder_embedder.start()

    def halves(self) -> tuple[list, list]:
        """The encoder's blocks, and the decoder's."""
        blocks = list(self.blocks)
        return blocks[: self.encoder_depth], blocks[self.encoder_depth :]

    def embed_anew(self, x: Streams) -> Tensor:
        """The decoder's tokens [B, N, D]."""
        return self.decoder_embedder(x["image"]) + self.pos_embed


@BACKBONES.register_module()
class DDT(Decoupled, SiT):
    """SiT in two halves: blocks 1..encoder_depth see the noised latent, time and label; the others see the latent anew,
    with an embedding of their own, and s, which is the tap of block `encoder_depth`. Options: SiT's."""

    def walk(self, x: Streams, t: Tensor, cond: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        time = self.t_embedder(self.steps_of(t))  # [B, D]
        (*first, last), decoder = self.halves()
        h, c = self.embed(x), time + self.y_embedder(cond)
        for block in first:
            h = self.run(block, h, c)
            yield h, c
        raw = time[:, None] + self.run(last, h, c)  # [B, N, D]; a block applies the SiLU of s itself
        yield F.silu(raw), raw
        h = self.embed_anew(x)
        for block in decoder:
            h = self.run(block, h, raw)
            yield h, raw


@BACKBONES.register_module()
class DDTDiT(DDT, DiT):
    """DiT in two halves, as DDT: over discrete steps, with the noise and its variance as the output. Options: DiT's."""


@BACKBONES.register_module()
class DDTMMDiT(Decoupled, MMDiT):
    """MMDiT in two halves: the first `encoder_depth` joint blocks, and a decoder whose image half reads them per token.

    What DDT's split means with text is inferred: in the decoder the image half has s = SiLU(time + the encoder's image
    tokens) for each token, and embeds the noised latent anew; the text's tokens go on from the encoder into the decoder's
    blocks, whose text half keeps MMDiT's condition: the time alone (with the pooled text's, where there is one). The final
    layer is modulated by s. The tap of block `encoder_depth` is s. Options: MMDiT's.
    """

    def walk(self, x: Streams, t: Tensor, cond: TextCond) -> Iterator[tuple[Tensor, Tensor]]:
        (*first, last), decoder = self.halves()
        h, (text, time, c) = self.embed(x), self.conditions(t, cond)
        for block in first:
            text, h = self.run(block, text, h, c)
            yield h, c
        text, h = self.run(last, text, h, c)
        raw = time[:, None] + h  # [B, N, D]
        yield F.silu(raw), raw
        h = self.embed_anew(x)
        for block in decoder:
            text, h = self.run(block, text, h, c, raw)
            yield h, raw
