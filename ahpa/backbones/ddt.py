"""A decoupled transformer on SiT's blocks: a condition encoder, and a velocity decoder that reads it per token (DDT's
split, as DUPA uses it: neither SwiGLU nor rotary positions).

The encoder's tokens h and the time make s = SiLU(t + h) [B, N, D]; in the decoder's blocks s takes the place of the label's
and the time's sum, so that every token has a modulation of its own.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Denoised, Streams, Tokens
from .layers import PatchEmbed, modulate
from .sit import SiT


def per_token(block, x: Tensor, c: Tensor) -> Tensor:
    """A block of SiT whose condition c is [B, N, D]: a modulation for each token."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=-1)
    x = x + gate_a * block.attn(modulate(x, shift_a, scale_a))
    return x + gate_m * block.mlp(modulate(x, shift_m, scale_m))


@BACKBONES.register_module()
class DDT(SiT):
    """SiT in two halves: blocks 1..encoder_depth see the noised latent, time and label; the others see the latent anew,
    with an embedding of their own, and s.

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
        nn.init.xavier_uniform_(self.decoder_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.decoder_embedder.proj.bias)

    def forward(self, x: Streams, t: Tensor, cond: Tensor, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """As SiT's."""
        self._check_input(x, taps)
        time = self.t_embedder(self.steps_of(t))  # [B, D]
        h, c, tapped = self.embed(x), time + self.y_embedder(cond), {}
        raw = h  # [B, N, D], the decoder's condition once the encoder has made it
        for number, block in enumerate(self.blocks, start=1):
            if number <= self.encoder_depth:
                h = self.run(block, h, c)
            else:
                h = self.run(per_token, block, h, raw)
            out = h
            if number == self.encoder_depth:
                raw = time[:, None] + h  # a block applies the SiLU of s itself
                out, h = F.silu(raw), self.decoder_embedder(x["image"]) + self.pos_embed
            if number in taps:
                tapped[number] = Tokens(out, prefix=0, grid=self.grid)
            if number == stop:
                return Denoised({}, tapped)
        return Denoised(self.directed(self.predict(h, raw)), tapped)

    def predict(self, h: Tensor, c: Tensor) -> Streams:
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=-1)
        return {"image": self.unpatchify(self.final_layer.linear(modulate(h, shift, scale))).float()}
