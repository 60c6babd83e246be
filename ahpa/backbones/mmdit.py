"""MMDiT (Stable Diffusion 3, arXiv:2403.03206) in the text-to-image setting of REPA
(arXiv:2410.06940): 24 blocks, width 768 in 24 heads, fixed sin-cos positions, CLIP's tokens.

Parameter names are those of REPA's published text-to-image layout. Shapes: B batch, N image tokens,
T text tokens, D width, H heads.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams, TextCond
from ..registry.validation import boolean, positive_int
from .base import BlockState, PatchTransformer
from .lanes import Lanes
from .layers import (
    NORM_EPS,
    FinalLayer,
    Heads,
    Mlp,
    add_to_time,
    linear_layers,
    modulate,
    modulation,
    parts,
    weight_dtype,
)

BLANK_TOKENS = 77  # CLIP's context length; costs are counted with that many text tokens


class HalfAttention(nn.Module):
    """The share of one modality in a joint attention.

    Args:
        dim: Width D.
        num_heads: Number of heads H.
        qk_norm: Whether to apply a LayerNorm to the queries and keys of each head.
        pre_only: Whether only keys and values are used: no output projection and no norm of q.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, pre_only: bool) -> None:
        super().__init__()
        head = dim // num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        norm_q = qk_norm and not pre_only
        self.ln_q = nn.LayerNorm(head, eps=NORM_EPS) if norm_q else nn.Identity()
        self.ln_k = nn.LayerNorm(head, eps=NORM_EPS) if qk_norm else nn.Identity()
        if not pre_only:
            self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Heads:
        """Return queries, keys and values of [B, tokens, D], [B, H, tokens, D/H] each."""
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return Heads(self.ln_q(q).to(v.dtype), self.ln_k(k).to(v.dtype), v)


class HalfBlock(nn.Module):
    """One modality's half of a joint block, with adaLN-Zero.

    Args:
        dim: Width D.
        num_heads: Number of heads H.
        mlp_ratio: Hidden width of the MLP, relative to D.
        qk_norm: See `HalfAttention`.
        pre_only: Whether the half ends at the attention, which it only feeds: it has no MLP then,
            and its modulation is a shift and a scale.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qk_norm: bool,
        pre_only: bool = False,
    ) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.attn = HalfAttention(dim, num_heads, qk_norm=qk_norm, pre_only=pre_only)
        self.adaLN_modulation = modulation(dim, 2 if pre_only else 6)
        if not pre_only:
            self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def before(self, x: Tensor, c: Tensor) -> tuple[Heads, tuple[Tensor, ...]]:
        """Return the heads of tokens x [B, tokens, D], and the modulations that `after` needs."""
        modulations = parts(self.adaLN_modulation(c), 2 if self.pre_only else 6)
        shift, scale, *rest = modulations
        return self.attn(modulate(x, shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """Return the updated tokens, given the attention's output [B, tokens, D] for them."""
        gate_attn, shift, scale, gate_mlp = modulations
        x = x + gate_attn * self.attn.proj(attended)
        return x + gate_mlp * self.mlp(modulate(x, shift, scale))


class JointBlock(nn.Module):
    """Both halves, with one softmax over the tokens of both.

    Args:
        dim: Width D.
        num_heads: Number of heads H.
        mlp_ratio: Hidden width of the MLPs, relative to D.
        qk_norm: See `HalfAttention`.
        pre_only: Whether the text half only feeds the attention, as in the last block.
    """

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool, pre_only: bool
    ) -> None:
        super().__init__()
        self.context_block = HalfBlock(
            dim, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, pre_only=pre_only
        )
        self.x_block = HalfBlock(dim, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm)

    def forward(
        self,
        text: Tensor,
        x: Tensor,
        text_c: Tensor,
        image_c: Tensor,
        keep_heads: bool = False,
    ) -> tuple[Tensor, Tensor, Heads | None]:
        """Update the tokens of both modalities.

        Args:
            text: Text tokens [B, T, D].
            x: Image tokens [B, N, D].
            text_c: Condition of the text half, [B, D].
            image_c: Condition of the image half, [B, D] or [B, N, D].
            keep_heads: Whether to return the heads of the image tokens as well.

        Returns:
            Text tokens (unchanged if the text half is `pre_only`), image tokens, and the heads of
            the image tokens or None.
        """
        text_heads, text_rest = self.context_block.before(text, text_c)
        heads, rest = self.x_block.before(x, image_c)
        k = torch.cat([text_heads.k, heads.k], dim=2)  # [B, H, T+N, D/H]
        v = torch.cat([text_heads.v, heads.v], dim=2)
        pre_only = self.context_block.pre_only
        q = heads.q if pre_only else torch.cat([text_heads.q, heads.q], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if not pre_only:
            text_attended, attended = attended.split([text.shape[1], x.shape[1]], dim=1)
            text = self.context_block.after(text, text_attended, text_rest)
        x = self.x_block.after(x, attended, rest)
        return text, x, heads if keep_heads else None


class PooledEmbedder(nn.Module):
    """Pooled text [B, P] to [B, D]: Linear, SiLU, Linear (SD3, figure 2)."""

    def __init__(self, pooled_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(pooled_dim, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Embed pooled text [B, P] to [B, D]."""
        return self.mlp(pooled.to(weight_dtype(self.mlp)))


class TextConditions(NamedTuple):
    """What MMDiT's blocks get beside the image tokens.

    Attributes:
        text: Text tokens [B, T, D].
        time: Embedded time of the image tokens, [B, D] or [B, N, D].
        text_c: Condition of the text half, [B, D].
        image_c: Condition of the image half, [B, D] or [B, N, D].
    """

    text: Tensor
    time: Tensor
    text_c: Tensor
    image_c: Tensor


@BACKBONES.register_module()
class MMDiT(PatchTransformer):
    """Multimodal DiT (SD3, arXiv:2403.03206, section 4): text and image tokens have weights
    of their own and attend to each other jointly. The defaults are REPA's text-to-image setting.

    Taps are of the image tokens; attention logits are those among image tokens, before the joint
    softmax. With a time per image token the text half is conditioned on the mean time. Image tokens
    may skip blocks; groups of tokens are refused, since the text would join them.

    Args:
        input_size: Side of the latent; derived from the tokenizer.
        in_channels: Channels C of the latent; derived from the tokenizer.
        depth: Number of blocks.
        hidden_size: Width D, a multiple of 4.
        num_heads: Attention heads of a block; must divide `hidden_size`.
        patch_size: Side p of the patch of latents that makes one token.
        mlp_ratio: Hidden width of the MLPs, relative to D.
        text_dim: Width of the text encoder's tokens.
        pooled_dim: Width of a pooled text vector that is added to the time embedding (SD3); None
            for modulation by the time alone (REPA).
        qk_norm: Whether to apply a LayerNorm to the queries and keys of each head.
        adaln_zero: Whether to initialise like SiT; False leaves PyTorch's defaults, as REPA's
            text-to-image code does.
        gradient_checkpointing: Whether to recompute blocks in the backward pass to save memory.

    Raises:
        ConfigError: If a size is not positive, or if sizes do not divide.
    """

    takes = "prompts"
    plan_kinds = frozenset({"route"})
    text_dim: int

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
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
            gradient_checkpointing=gradient_checkpointing,
        )
        boolean("qk_norm", qk_norm)
        self.adaln_zero = boolean("adaln_zero", adaln_zero)
        self.text_dim = positive_int("text_dim", text_dim)
        self.y_embedder: PooledEmbedder | None = None
        if pooled_dim is not None:
            self.pooled_dim = positive_int("pooled_dim", pooled_dim)
            self.y_embedder = PooledEmbedder(pooled_dim, hidden_size)
        self.context_embedder = nn.Linear(text_dim, hidden_size)
        self.joint_blocks = nn.ModuleList(
            JointBlock(
                hidden_size,
                num_heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                pre_only=number == depth,
            )
            for number in range(1, depth + 1)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.initialise()

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # published under another name
        """The joint blocks in order."""
        return self.joint_blocks

    def initialise(self) -> None:
        """Set the initial weights: adaLN-Zero, or PyTorch's defaults if `adaln_zero` is False."""
        if not self.adaln_zero:
            return
        small = linear_layers(self.t_embedder)
        if self.y_embedder is not None:
            small += linear_layers(self.y_embedder)
        self.initialise_adaln_zero(small)

    def blank_cond(self, count: int, device: torch.device | str) -> TextCond:
        """Return zeros for 77 text tokens, and for the pooled text if the model takes one."""
        tokens = torch.zeros(count, BLANK_TOKENS, self.text_dim, device=device)
        if self.pooled_dim is None:
            return TextCond(tokens)
        return TextCond(tokens, torch.zeros(count, self.pooled_dim, device=device))

    def _check_condition(self, cond: Any) -> None:
        name = type(self).__name__
        if not isinstance(cond, TextCond):
            raise ValueError(
                f"{name}: the condition must be a TextCond of a text encoder, got "
                f"{type(cond).__name__}."
            )
        tokens, pooled = cond
        if tokens.ndim != 3 or tokens.shape[-1] != self.text_dim:
            raise ValueError(
                f"{name}: text tokens must be [B, T, {self.text_dim}], got {list(tokens.shape)}."
            )
        if self.pooled_dim is None:
            return
        if pooled is None or pooled.shape[-1] != self.pooled_dim:
            given = "none" if pooled is None else list(pooled.shape)
            raise ValueError(
                f"{name}: the pooled text must be [B, {self.pooled_dim}], got {given}."
            )

    def conditions(self, t: Tensor, cond: TextCond) -> TextConditions:
        """Embed the text and the times [B] or [B, N]."""
        text = self.context_embedder(cond.tokens.to(self.context_embedder.weight.dtype))
        time = self.t_embedder(self.time_input(t))
        text_c = time
        if t.ndim == 2:
            text_c = self.t_embedder(self.time_input(t.mean(1)))
        image_c = time
        if self.y_embedder is not None:
            pooled = self.y_embedder(cond.pooled)
            text_c = text_c + pooled
            image_c = text_c if t.ndim == 1 else add_to_time(time, pooled)
        return TextConditions(text, time, text_c, image_c)

    def walk(
        self, x: Streams, t: Tensor, cond: TextCond, keep: frozenset[int], lanes: Lanes
    ) -> Iterator[BlockState]:
        """Yield the state of the image tokens after each block."""
        h = self.embed(x)
        text, _, text_c, image_c = self.conditions(t, cond)
        for number, block in enumerate(self.blocks, start=1):
            h, own = lanes.enter(number, h), lanes.cond(number, image_c)
            text, h, heads = self.run(block, text, h, text_c, own, number in keep)
            yield BlockState(h, image_c, heads)
            h = lanes.leave(number, h)
