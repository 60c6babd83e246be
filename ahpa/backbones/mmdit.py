"""MMDiT (Stable Diffusion 3, arXiv:2403.03206, section 4) in the text-to-image setting of REPA (arXiv:2410.06940).

Text and image tokens have weights of their own and attend to each other jointly. REPA's setting: depth 24, width 768 in
24 heads of 32, fixed sin-cos positions, CLIP's 768 wide tokens, modulation by the timestep alone (SD3 adds pooled text,
here the option `pooled_dim`). Parameter names are those of REPA's published text-to-image layout.

B batch, N image tokens, T text tokens, D width, H heads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Denoised, Streams, TextCond
from .base import PatchTransformer
from .layers import NORM_EPS, FinalLayer, Mlp, modulate, modulation, parts

BLANK_TOKENS = 77  # of the condition that costs are counted with: CLIP's context length


class HalfAttention(nn.Module):
    """One modality's share of a joint attention: its packed q, k, v and, unless `pre_only`, its output projection.
    qk_norm: LayerNorm over each head's q and k (no ln_q where pre_only: that q is not used)."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, pre_only: bool):
        super().__init__()
        self.num_heads, head = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.ln_q = nn.LayerNorm(head, eps=NORM_EPS) if qk_norm and not pre_only else nn.Identity()
        self.ln_k = nn.LayerNorm(head, eps=NORM_EPS) if qk_norm else nn.Identity()
        if not pre_only:
            self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, tokens, D] -> q, k, v, each [B, H, tokens, D/H]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.ln_q(q).to(v.dtype), self.ln_k(k).to(v.dtype), v


class HalfBlock(nn.Module):
    """One modality's half of a joint block, with adaLN-Zero; a `pre_only` half feeds the attention and ends there, with
    a shift and a scale for all its modulation."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool, pre_only: bool = False):
        super().__init__()
        self.pre_only = pre_only
        self.attn = HalfAttention(dim, num_heads, qk_norm=qk_norm, pre_only=pre_only)
        self.adaLN_modulation = modulation(dim, 2 if pre_only else 6)
        if not pre_only:
            self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def before(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x [B, tokens, D], c [B, D] or [B, tokens, D] -> (q, k, v), and what `after` modulates with."""
        shift, scale, *rest = parts(self.adaLN_modulation(c), 2 if self.pre_only else 6)
        return self.attn(modulate(x, shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """attended [B, tokens, D]: the attention's output at this half's tokens."""
        gate_a, shift, scale, gate_m = modulation
        x = x + gate_a * self.attn.proj(attended)
        return x + gate_m * self.mlp(modulate(x, shift, scale))


class JointBlock(nn.Module):
    """Both halves and one softmax over the tokens of both: (text [B, T, D], x [B, N, D], c [B, D]) -> (text, x).

    own_c [B, D] or [B, N, D]: the image half's condition, where it is not c. The text comes back as it is from the last
    block, whose text half is `pre_only`; nothing reads it then.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool, pre_only: bool):
        super().__init__()
        sizes = dict(mlp_ratio=mlp_ratio, qk_norm=qk_norm)
        self.context_block = HalfBlock(dim, num_heads, pre_only=pre_only, **sizes)
        self.x_block = HalfBlock(dim, num_heads, **sizes)

    def forward(self, text: Tensor, x: Tensor, c: Tensor, own_c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        (text_q, *text_kv), text_rest = self.context_block.before(text, c)
        (q, *kv), rest = self.x_block.before(x, c if own_c is None else own_c)
        k, v = (torch.cat(pair, dim=2) for pair in zip(text_kv, kv, strict=True))  # [B, H, T+N, D/H]
        if not self.context_block.pre_only:
            q = torch.cat([text_q, q], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if not self.context_block.pre_only:
            text_attended, attended = attended.split([text.shape[1], x.shape[1]], dim=1)
            text = self.context_block.after(text, text_attended, text_rest)
        return text, self.x_block.after(x, attended, rest)


class PooledEmbedder(nn.Module):
    """Pooled text [B, P] -> [B, D]: Linear, SiLU, Linear (SD3, figure 2)."""

    def __init__(self, pooled_dim: int, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.mlp(pooled.to(self.mlp[0].weight.dtype))


@BACKBONES.register_module()
class MMDiT(PatchTransformer):
    """MMDiT with adaLN-Zero, fixed sin-cos positions and taps of the image tokens by block number (1-based).

    input_size (the latent's side) and in_channels are derived. depth, hidden_size, num_heads, patch_size, mlp_ratio: the
    architecture, by default REPA's; text_dim: width of the encoder's tokens; pooled_dim: width of a pooled text that is
    added to the time embedding, None for none; qk_norm: LayerNorm over each head's q and k; adaln_zero: the weights start
    as SiT's do (REPA's text-to-image code leaves PyTorch's defaults: False); gradient_checkpointing: blocks are computed
    again in the backward pass. ValueError for sizes that do not divide or are not above 0.
    """

    demo = dict(depth=6, hidden_size=192, num_heads=6, patch_size=2, text_dim=768)

    def __init__(self, *, input_size: int, in_channels: int, depth: int = 24, hidden_size: int = 768,
                 num_heads: int = 24, patch_size: int = 2, mlp_ratio: float = 4.0, text_dim: int = 768,
                 pooled_dim: int | None = None, qk_norm: bool = False, adaln_zero: bool = True,
                 gradient_checkpointing: bool = False):  # fmt: skip
        super().__init__(input_size=input_size, in_channels=in_channels, depth=depth, hidden_size=hidden_size,
                         num_heads=num_heads, patch_size=patch_size, gradient_checkpointing=gradient_checkpointing,
                         mlp_ratio=mlp_ratio, text_dim=text_dim,
                         pooled_dim=1 if pooled_dim is None else pooled_dim)  # fmt: skip
        self.text_dim, self.pooled_dim, self.adaln_zero = text_dim, pooled_dim, adaln_zero
        self.y_embedder = None if pooled_dim is None else PooledEmbedder(pooled_dim, hidden_size)
        self.context_embedder = nn.Linear(text_dim, hidden_size)
        self.joint_blocks = nn.ModuleList(
            JointBlock(hidden_size, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, pre_only=number == depth)
            for number in range(1, depth + 1)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, by the name that the engine compiles them by."""
        return self.joint_blocks

    def _initialise(self):
        embedders = (self.t_embedder,) if self.y_embedder is None else (self.t_embedder, self.y_embedder)
        if self.adaln_zero:
            self.initialise(small=[embedder.mlp[i] for embedder in embedders for i in (0, 2)])

    def blank_cond(self, count: int, device) -> TextCond:
        """Zeros of CLIP's length."""
        tokens = torch.zeros(count, BLANK_TOKENS, self.text_dim, device=device)
        pooled = None if self.pooled_dim is None else torch.zeros(count, self.pooled_dim, device=device)
        return TextCond(tokens, pooled)

    def _check_text(self, cond: TextCond) -> None:
        if not isinstance(cond, TextCond):
            raise ValueError(f"MMDiT: the condition is a TextCond of a text encoder, got {type(cond).__name__}.")
        if cond.tokens.ndim != 3 or cond.tokens.shape[-1] != self.text_dim:
            raise ValueError(f"MMDiT: text tokens are [B, T, {self.text_dim}], got {list(cond.tokens.shape)}.")
        if self.pooled_dim is not None and (cond.pooled is None or cond.pooled.shape[-1] != self.pooled_dim):
            got = "none" if cond.pooled is None else list(cond.pooled.shape)
            raise ValueError(f"MMDiT: the pooled text is [B, {self.pooled_dim}], got {got}.")

    def forward(self, x: Streams, t: Tensor, cond: TextCond, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """As PatchTransformer's, with cond: tokens [B, T, text_dim] (and pooled [B, pooled_dim]). Taps are of the image's
        tokens. ValueError for a condition of another shape."""
        self._check_text(cond)
        return super().forward(x, t, cond, taps, stop)

    def conditions(self, t: Tensor, cond: TextCond) -> tuple[Tensor, Tensor, Tensor]:
        """-> the text's tokens [B, T, D], the time [B, D], and the modulation's condition [B, D]."""
        text = self.context_embedder(cond.tokens.to(self.context_embedder.weight.dtype))
        time = self.t_embedder(self.steps_of(t))
        return text, time, time if self.y_embedder is None else time + self.y_embedder(cond.pooled)

    def walk(self, x: Streams, t: Tensor, cond: TextCond) -> Iterator[tuple[Tensor, Tensor]]:
        """The condition of every block is the time's [B, D], with the pooled text's where there is one."""
        h, (text, _, c) = self.embed(x), self.conditions(t, cond)
        for block in self.joint_blocks:
            text, h = self.run(block, text, h, c)
            yield h, c
