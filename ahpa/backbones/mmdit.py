"""MMDiT (Stable Diffusion 3, arXiv:2403.03206, section 4) in the text-to-image setting of REPA (arXiv:2410.06940).

Text and image tokens have weights of their own and attend to each other jointly. REPA's setting: depth 24, width 768 in
24 heads of 32, fixed sin-cos positions, CLIP's 768 wide tokens, modulation by the timestep alone (SD3 adds pooled text,
here the option `pooled_dim`). Parameter names are those of REPA's published text-to-image layout.

B batch, N image tokens, T text tokens, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import BACKBONES
from ..registry.contracts import Backbone, Denoised, Streams, TextCond, Tokens
from .layers import NORM_EPS, FinalLayer, Mlp, PatchEmbed, TimestepEmbedder, modulate, sincos_2d

INIT_STD = 0.02  # of the time MLP and the pooled text's, as in DiT
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
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, (2 if pre_only else 6) * dim))
        if not pre_only:
            self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def before(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x [B, tokens, D], c [B, D] -> (q, k, v), and what `after` modulates with."""
        shift, scale, *rest = self.adaLN_modulation(c)[:, None].chunk(2 if self.pre_only else 6, dim=-1)
        return self.attn(modulate(x, shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """attended [B, tokens, D]: the attention's output at this half's tokens."""
        gate_a, shift, scale, gate_m = modulation
        x = x + gate_a * self.attn.proj(attended)
        return x + gate_m * self.mlp(modulate(x, shift, scale))


class JointBlock(nn.Module):
    """Both halves and one softmax over the tokens of both: (text [B, T, D], x [B, N, D], c [B, D]) -> (text, x).

    The text comes back as it is from the last block, whose text half is `pre_only`; nothing reads it then."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool, pre_only: bool):
        super().__init__()
        sizes = dict(mlp_ratio=mlp_ratio, qk_norm=qk_norm)
        self.context_block = HalfBlock(dim, num_heads, pre_only=pre_only, **sizes)
        self.x_block = HalfBlock(dim, num_heads, **sizes)

    def forward(self, text: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        (text_q, *text_kv), text_rest = self.context_block.before(text, c)
        (q, *kv), rest = self.x_block.before(x, c)
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
class MMDiT(Backbone):
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
        super().__init__()
        self._check(input_size=input_size, in_channels=in_channels, depth=depth, hidden_size=hidden_size,
                    num_heads=num_heads, patch_size=patch_size, mlp_ratio=mlp_ratio, text_dim=text_dim,
                    pooled_dim=1 if pooled_dim is None else pooled_dim)  # fmt: skip
        self.input_size, self.in_channels, self.patch_size = input_size, in_channels, patch_size
        self.depth, self.hidden_size, self.text_dim, self.pooled_dim = depth, hidden_size, text_dim, pooled_dim
        self.grid, self.prefix = (input_size // patch_size, input_size // patch_size), 0
        self.streams = {"image": (in_channels, input_size, input_size)}
        self.gradient_checkpointing = gradient_checkpointing
        self.x_embedder = PatchEmbed(in_channels=in_channels, hidden_size=hidden_size, patch_size=patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = None if pooled_dim is None else PooledEmbedder(pooled_dim, hidden_size)
        self.context_embedder = nn.Linear(text_dim, hidden_size)
        self.register_buffer("pos_embed", sincos_2d(hidden_size, self.grid), persistent=False)  # [1, N, D]
        self.joint_blocks = nn.ModuleList(
            JointBlock(hidden_size, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, pre_only=number == depth)
            for number in range(1, depth + 1)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size * patch_size * in_channels)
        if adaln_zero:
            self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, by the name that the engine compiles them by."""
        return self.joint_blocks

    @staticmethod
    def _check(**sizes):
        for name, size in sizes.items():
            if not size > 0:
                raise ValueError(f"{name}: must be above 0, got {size}.")
        hidden_size, num_heads = sizes["hidden_size"], sizes["num_heads"]
        if hidden_size % num_heads:
            fits = [n for n in range(1, 33) if hidden_size % n == 0]
            raise ValueError(f"num_heads: {num_heads} does not divide hidden_size {hidden_size}; these do: {fits}.")
        if hidden_size % 4:
            raise ValueError(f"hidden_size: {hidden_size} must be a multiple of 4 (2-D sin-cos positions).")
        if sizes["input_size"] % sizes["patch_size"]:
            raise ValueError(f"patch_size: {sizes['patch_size']} does not divide the side {sizes['input_size']}.")

    def _initialise(self):
        """As SiT: Xavier for linear layers (the patch embedding as one), N(0, 0.02) for the time MLP and the pooled
        text's, zero for every modulation and the output, so that a block starts as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for embedder in (self.t_embedder, self.y_embedder):
            for layer in () if embedder is None else (embedder.mlp[0], embedder.mlp[2]):
                nn.init.normal_(layer.weight, std=INIT_STD)
        halves = [half for block in self.joint_blocks for half in (block.context_block, block.x_block)]
        for part in (*halves, self.final_layer):
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def blank_cond(self, count: int, device) -> TextCond:
        """Zeros of CLIP's length."""
        tokens = torch.zeros(count, BLANK_TOKENS, self.text_dim, device=device)
        pooled = None if self.pooled_dim is None else torch.zeros(count, self.pooled_dim, device=device)
        return TextCond(tokens, pooled)

    def _check_inputs(self, x: Tensor, cond: TextCond, taps) -> None:
        expected = (self.in_channels, self.input_size, self.input_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"MMDiT: the latent is [B, {', '.join(map(str, expected))}], got {list(x.shape)}.")
        wrong = [tap for tap in taps if not 1 <= tap <= self.depth]
        if wrong:
            raise ValueError(f"MMDiT: there is no block {wrong[0]} to tap; blocks are 1..{self.depth}.")
        if not isinstance(cond, TextCond):
            raise ValueError(f"MMDiT: the condition is a TextCond of a text encoder, got {type(cond).__name__}.")
        if cond.tokens.ndim != 3 or cond.tokens.shape[-1] != self.text_dim:
            raise ValueError(f"MMDiT: text tokens are [B, T, {self.text_dim}], got {list(cond.tokens.shape)}.")
        if self.pooled_dim is not None and (cond.pooled is None or cond.pooled.shape[-1] != self.pooled_dim):
            got = "none" if cond.pooled is None else list(cond.pooled.shape)
            raise ValueError(f"MMDiT: the pooled text is [B, {self.pooled_dim}], got {got}.")

    def forward(self, x: Streams, t: Tensor, cond: TextCond, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """x {'image': [B, C, h, w]}, t [B] in [0, 1], cond: tokens [B, T, text_dim] (and pooled [B, pooled_dim]) -> the
        velocity (float32) and the taps [B, N, D]; after block `stop`, if given, nothing more is computed. ValueError for
        inputs of other shapes and a tap that is no block."""
        self._check_inputs(x["image"], cond, taps)
        h = self.x_embedder(x["image"]) + self.pos_embed  # [B, N, D]
        text = self.context_embedder(cond.tokens.to(self.context_embedder.weight.dtype))  # [B, T, D]
        c = self.t_embedder(t)  # [B, D]
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond.pooled)
        tapped = {}
        for number, block in enumerate(self.joint_blocks, start=1):
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                text, h = checkpoint(block, text, h, c, use_reentrant=False)
            else:
                text, h = block(text, h, c)
            if number in taps:
                tapped[number] = Tokens(h, prefix=0, grid=self.grid)
            if number == stop:
                return Denoised({}, tapped)
        return Denoised({"image": self.unpatchify(self.final_layer(h, c)).float()}, tapped)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[B, h*w, p*p*C] -> [B, C, h*p, w*p]."""
        (h, w), p = self.grid, self.patch_size
        x = patches.unflatten(1, (h, w)).unflatten(-1, (p, p, self.in_channels))  # [B, h, w, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.in_channels, h * p, w * p)
