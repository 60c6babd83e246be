"""The layers of a diffusion transformer: embeddings, attention, adaLN-Zero block, final layer.

Written from the papers (DiT, arXiv:2212.09748; SiT, arXiv:2401.08740). Parameter names follow the
published checkpoints. Shapes: B batch, N tokens, D width, H heads.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry.positions import MAX_PERIOD, sincos_1d

NORM_EPS = 1e-6
FREQUENCIES = 256  # channels of the sinusoid that enters the time MLP


def sincos_2d(dim: int, grid: tuple[int, int]) -> Tensor:
    """Return MAE's table of fixed positions, which DiT and REPA use.

    Args:
        dim: Number of channels, a multiple of 4.
        grid: Token grid (h, w).

    Returns:
        [1, h*w, dim] float32 in row-major order; the first half of the channels encodes the
        column, the second half the row.
    """
    if torch.get_default_device().type == "meta":  # whose arithmetic imports torch's compiler
        return torch.empty(1, grid[0] * grid[1], dim)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = [sincos_1d(dim // 2, axis.flatten()) for axis in (columns, rows)]
    return torch.cat(halves, dim=1).float()[None]


def time_sinusoid(t: Tensor) -> Tensor:
    """Encode times of any shape [...] to [..., 256] float32: cosines, then sines, of the raw t."""
    half = FREQUENCIES // 2
    rate = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=t.device) / half)
    angle = t.float()[..., None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def per_token(vector: Tensor) -> Tensor:
    """Return [B, D] as [B, 1, D], so that it broadcasts over tokens; [B, N, D] is unchanged."""
    return vector[:, None] if vector.ndim == 2 else vector


def add_to_time(time: Tensor, vector: Tensor) -> Tensor:
    """Add a vector of each sample [B, D] to embedded times, [B, D] or one per token [B, N, D]."""
    return time + (vector if time.ndim == 2 else vector[:, None])


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """List the linear layers of a module in order."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's weights."""
    return next(module.parameters()).dtype


class PatchEmbed(nn.Module):
    """Patches to tokens: [B, C, H, W] -> [B, N, D].

    Args:
        in_channels: Channels C.
        hidden_size: Width D.
        patch_size: Side p of a patch; N = (H/p) (W/p).
    """

    def __init__(self, *, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def initialise(self) -> None:
        """Initialise as a linear layer of each patch: Xavier, zero bias."""
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Embed [B, C, H, W] to [B, N, D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Times [B] or [B, N] to [B, D] or [B, N, D]: sinusoid, Linear, SiLU, Linear."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed times of any shape [...] to [..., D]."""
        return self.mlp(time_sinusoid(t).to(weight_dtype(self.mlp)))


class LabelEmbedder(nn.Module):
    """Labels [B] in 0..num_classes to [B, D]; label `num_classes` is the null class."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        """Embed labels [B] to [B, D]."""
        return self.embedding_table(label)


class Heads(NamedTuple):
    """Queries, keys and values of an attention, [B, H, N, D/H] each, after any qk-norm."""

    q: Tensor
    k: Tensor
    v: Tensor

    def logits(self) -> Tensor:
        """Return q k^T / sqrt(D/H), [B, H, N, N]: the attention before its softmax."""
        scale = self.q.shape[-1] ** -0.5
        return (self.q * scale) @ self.k.mT


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, D] with packed queries, keys and values.

    Args:
        dim: Width D.
        num_heads: Number of heads H.
        qk_norm: Whether to apply a LayerNorm to the queries and keys of each head.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        head = dim // num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(head) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head) if qk_norm else nn.Identity()

    def heads(self, x: Tensor) -> Heads:
        """Return the queries, keys and values of [B, N, D]."""
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return Heads(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v)

    def forward(
        self, x: Tensor, keep_heads: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Heads | None]:
        """Attend over [B, N, D].

        Args:
            x: Tokens [B, N, D].
            keep_heads: Whether to return the heads as well.
            mask: Which tokens attend to which, bool [B, 1, N, N]; None for all.

        Returns:
            [B, N, D], and the heads or None.
        """
        heads = self.heads(x)
        attended = F.scaled_dot_product_attention(heads.q, heads.k, heads.v, attn_mask=mask)
        mixed = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed, heads if keep_heads else None


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., dim] to [..., dim]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LayerNorm(x) (1 + scale) + shift for x [B, N, D]; shift, scale [B, 1 or N, D].

    The LayerNorm has no parameters.
    """
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def modulation(dim: int, count: int) -> nn.Sequential:
    """Make the layer that gives `count` modulations of a condition: SiLU, Linear."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, count * dim))


def parts(modulated: Tensor, count: int) -> tuple[Tensor, ...]:
    """Split [B, count*D] or [B, N, count*D] into `count` tensors [B, 1, D] or [B, N, D]."""
    return per_token(modulated).chunk(count, dim=-1)


class Block(nn.Module):
    """A transformer block with adaLN-Zero (DiT, figure 3).

    Args:
        dim: Width D.
        num_heads: Number of heads H.
        mlp_ratio: Hidden width of the MLP, relative to D.
        qk_norm: See `Attention`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = modulation(dim, 6)

    def forward(
        self, x: Tensor, c: Tensor, keep_heads: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Heads | None]:
        """Update the tokens.

        Args:
            x: Tokens [B, N, D].
            c: Condition [B, D], or [B, N, D] with one for each token.
            keep_heads: Whether to return the heads of the attention as well.
            mask: Which tokens attend to which, bool [B, 1, N, N]; None for all.

        Returns:
            Tokens [B, N, D], and the heads or None.
        """
        modulations = parts(self.adaLN_modulation(c), 6)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulations
        attended, heads = self.attn(modulate(x, shift_attn, scale_attn), keep_heads, mask)
        x = x + gate_attn * attended
        x = x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))
        return x, heads


class FinalLayer(nn.Module):
    """Tokens to patches: [B, N, D] -> [B, N, out_features]."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = modulation(dim, 2)

    def initialise(self) -> None:
        """Zero-initialise the weights of the output."""
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, out_features]; c is [B, D] or [B, N, D]."""
        shift, scale = parts(self.adaLN_modulation(c), 2)
        return self.linear(modulate(x, shift, scale))
