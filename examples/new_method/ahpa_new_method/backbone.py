"""`RotaryTransformer`: a diffusion transformer written against ahpa's contract alone."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ahpa.registry import BACKBONES, ConfigError
from ahpa.registry.contracts import WHOLE, Backbone, BackboneOutput, Streams, Tap, TokenPlan
from ahpa.registry.validation import positive, positive_int


def rotary_table(grid: tuple[int, int], dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of axial rotary positions.

    The first half of a head's dim / 2 pairs turns with the row y, the second with the column x:
    pair i of either by the angle y base^(-4 i / dim) or x base^(-4 i / dim).

    Args:
        grid: Token grid (h, w).
        dim: Width of a head, a multiple of 4.
        base: Base of the wavelengths.

    Returns:
        Two tensors [h * w, dim / 2].
    """
    height, width = grid
    rate = base ** (-torch.arange(dim // 4) * 4 / dim)
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    angle = torch.cat([rows[:, None] * rate, columns[:, None] * rate], dim=1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of x [B, H, N, d] by the angles of a table [N, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class TimeEmbedding(nn.Module):
    """Sines and cosines of t at frequencies from 1 to 1000 / (2 pi) turns, then a two-layer MLP.

    Args:
        width: Width of the embedding.
        frequencies: Number of frequencies.
    """

    rates: Tensor

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        rates = torch.logspace(0, 3, frequencies)
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed times [...] to [..., width]."""
        angle = t[..., None].float() * self.rates
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class Block(nn.Module):
    """Attention with rotary positions and a gated MLP, modulated by the condition (adaLN-Zero).

    Args:
        width: Width D of a token.
        heads: Number of attention heads H.
        hidden: Width of the MLP.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.enter = nn.Linear(width, 2 * hidden, bias=False)
        self.leave = nn.Linear(hidden, width, bias=False)

    def forward(
        self, h: Tensor, cond: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the block.

        Args:
            h: Tokens [B, N, D].
            cond: Condition [B, 1, D], or [B, N, D] with one for each token.
            cos: Cosines of the rotary angles [N, d / 2].
            sin: Sines of the rotary angles [N, d / 2].

        Returns:
            The tokens [B, N, D], and the rotated queries and keys [B, H, N, D / H].
        """
        parts = self.modulation(F.silu(cond)).chunk(6, dim=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        x = self.norm1(h) * (1 + scale1) + shift1
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = rotate(q, cos, sin).to(v.dtype)
        k = rotate(k, cos, sin).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate1 * self.out(mixed)
        x = self.norm2(h) * (1 + scale2) + shift2
        value, gate = self.enter(x).chunk(2, dim=-1)
        return h + gate2 * self.leave(value * F.silu(gate)), q, k


@BACKBONES.register_module()
class RotaryTransformer(Backbone):
    """A plain diffusion transformer with RMSNorm, rotary positions and a gated MLP.

    Conditioned on the time and a class by adaLN-Zero; a time per token is allowed. Gates and the
    output layer start at zero.

    Args:
        input_size: Side of the latent; passed by ahpa.
        in_channels: Channels of the latent; passed by ahpa.
        depth: Number of blocks.
        hidden_size: Width D of a token.
        num_heads: Number of attention heads; D / num_heads must be a multiple of 4.
        patch_size: Side of the square of latents that makes one token.
        num_classes: Number of labels; label `num_classes` is the null class.
        mlp_ratio: Width of the MLP over D.
        rotary_base: Base of the rotary wavelengths.

    Raises:
        ConfigError: If sizes do not divide.
    """

    tap_kinds = frozenset({"tokens", "attention"})
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int = 12,
        hidden_size: int = 768,
        num_heads: int = 12,
        patch_size: int = 2,
        num_classes: int = 1000,
        mlp_ratio: float = 8 / 3,
        rotary_base: float = 100.0,
    ) -> None:
        super().__init__()
        self.depth = positive_int("depth", depth)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_heads = positive_int("num_heads", num_heads)
        self.patch_size = positive_int("patch_size", patch_size)
        self.num_classes = positive_int("num_classes", num_classes)
        if hidden_size % (4 * num_heads):
            raise ConfigError(
                f"hidden_size: must be a multiple of 4 x num_heads = {4 * num_heads}, "
                f"got {hidden_size}."
            )
        if input_size % patch_size:
            raise ConfigError(
                f"patch_size: must divide the latent's side {input_size}, got {patch_size}."
            )
        side = input_size // patch_size
        self.grid = (side, side)
        self.streams = {"image": (in_channels, input_size, input_size)}
        self.out_channels = in_channels
        per_token = in_channels * patch_size**2
        hidden = int(hidden_size * positive("mlp_ratio", mlp_ratio))

        self.embed = nn.Linear(per_token, hidden_size)
        self.time = TimeEmbedding(hidden_size)
        self.label = nn.Embedding(num_classes + 1, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, hidden) for _ in range(depth))
        self.last_modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(hidden_size, per_token)
        base = positive("rotary_base", rotary_base)
        cos, sin = rotary_table(self.grid, hidden_size // num_heads, base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Set the gates' and the output layer's weights to zero, so that training starts at 0."""
        nn.init.normal_(self.label.weight, std=0.02)
        zero: list[nn.Linear] = [self.last_modulation, self.head]
        for block in self.blocks:
            assert isinstance(block, Block)
            zero.append(block.modulation)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def check_taps(self, taps: frozenset[Tap]) -> None:
        """Raise ValueError for a tap that does not exist."""
        for tap in taps:
            if not 1 <= tap.block <= self.depth:
                raise ValueError(f"there is no block {tap.block}; blocks are 1..{self.depth}.")
            if tap.kind not in self.tap_kinds:
                raise ValueError(f"there are no taps of the kind {tap.kind!r}.")

    def forward(
        self,
        x: Streams,
        t: Tensor,
        cond: Any,
        taps: frozenset[Tap] = frozenset(),
        stop: int | None = None,
        plan: TokenPlan = WHOLE,
    ) -> BackboneOutput:
        """Predict the velocity of the image; see `Backbone.forward`."""
        self.check_taps(taps)
        patch = self.patch_size
        patches = F.unfold(x["image"], patch, stride=patch).transpose(1, 2)
        h = self.embed(patches)
        times = t if t.ndim == 2 else t[:, None]
        c = self.time(times) + self.label(cond)[:, None]  # [B, 1, D] or [B, N, D]

        found: dict[Tap, Tensor] = {}
        for number, block in enumerate(self.blocks[:stop], 1):
            h, q, k = block(h, c, self.cos, self.sin)
            if Tap(number) in taps:
                found[Tap(number)] = h
            if Tap(number, "attention") in taps:
                logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
                found[Tap(number, "attention")] = logits
        if stop is not None:
            return BackboneOutput({}, found, 0, self.grid)

        scale, shift = self.last_modulation(F.silu(c)).chunk(2, dim=-1)
        out = self.head(self.norm(h) * (1 + scale) + shift).float().transpose(1, 2)
        size = self.streams["image"][1:]
        image = F.fold(out, size, patch, stride=patch)
        return BackboneOutput({"image": image}, found, 0, self.grid)

    def blank_cond(self, count: int, device: torch.device | str) -> Tensor:
        """Return the null class of `count` samples."""
        return torch.full((count,), self.num_classes or 0, dtype=torch.long, device=device)
