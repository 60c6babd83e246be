"""The pieces of a diffusion transformer: embeddings, attention, the adaLN-Zero block and the final layer.

B batch, N tokens, D width, H heads. Written from the papers (DiT, arXiv:2212.09748; SiT, arXiv:2401.08740); parameter
names follow the published checkpoints, so that those load.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
FREQUENCIES = 256  # width of the sinusoid under the time MLP
MAX_PERIOD = 10_000


def sincos_1d(dim: int, position: Tensor) -> Tensor:
    """positions [N] -> [N, dim]: dim/2 sines, then dim/2 cosines, of frequencies 10000^(-2i/dim)."""
    rate = MAX_PERIOD ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = position.to(torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions [1, h*w, dim] float32 in row-major order: the first half from the column, the second from the
    row (MAE's table, which DiT and REPA use)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = [sincos_1d(dim // 2, axis.flatten()) for axis in (columns, rows)]
    return torch.cat(halves, dim=1).float()[None]


def time_sinusoid(t: Tensor) -> Tensor:
    """t [B] -> [B, 256] float32: cosines, then sines, of the raw t."""
    rate = torch.exp(-math.log(MAX_PERIOD) * torch.arange(FREQUENCIES // 2, device=t.device) / (FREQUENCIES // 2))
    angle = t.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class PatchEmbed(nn.Module):
    """Patches of p x p to tokens: [B, C, H, W] -> [B, N, D]."""

    def __init__(self, *, in_channels: int, hidden_size: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def start(self) -> None:
        """Xavier, as of the linear layer that it is; no bias."""
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """t [B] -> [B, D]: sinusoid of 256, then Linear, SiLU, Linear."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_sinusoid(t).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels [B] in 0..num_classes (the last is the null class) -> [B, D]."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] with packed q, k, v; qk_norm: LayerNorm over each head's q and k."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False):
        super().__init__()
        self.num_heads, head = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(head) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, D/H]
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then x (1 + scale) + shift; shift and scale [B, 1 or N, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def modulation(dim: int, count: int) -> nn.Sequential:
    """SiLU, Linear: what gives the `count` modulations of a condition."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, count * dim))


def parts(modulated: Tensor, count: int) -> tuple[Tensor, ...]:
    """A modulation's output, [B, count D] or for each token [B, N, count D], -> `count` of [B, 1 or N, D]."""
    return (modulated[:, None] if modulated.ndim == 2 else modulated).chunk(count, dim=-1)


class Block(nn.Module):
    """A transformer block with adaLN-Zero: shift, scale and gate of both halves come from the condition c, [B, D] or for
    each token [B, N, D]."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, qk_norm: bool = False):
        super().__init__()
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = modulation(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts(self.adaLN_modulation(c), 6)
        x = x + gate_a * self.attn(modulate(x, shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """The modulated tokens to patches: [B, N, D] -> [B, N, p*p*C]; c as a block's."""

    def __init__(self, dim: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = modulation(dim, 2)

    def zero(self) -> None:
        """Zero weights of the output, which a model starts with."""
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = parts(self.adaLN_modulation(c), 2)
        return self.linear(modulate(x, shift, scale))
