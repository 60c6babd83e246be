"""What the diffusion transformers share: tokens of patches with fixed positions, the start of the weights, the walk
through the blocks with its taps, and the way back from tokens to latents.

Shapes: B batch, N = h*w image tokens, P prefix tokens, D width, p patch, C channels.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry.contracts import Backbone, Denoised, Streams, Tokens
from .layers import PatchEmbed, TimestepEmbedder, sincos_2d

INIT_STD = 0.02  # of the tables and the MLPs of conditions


def check_positive(**sizes) -> None:
    """ValueError for a size that is not above 0."""
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{name}: must be above 0, got {size}.")


class PatchTransformer(Backbone):
    """Base of SiT and MMDiT, which add their conditions, blocks and final layer, and define `walk`.

    learn_sigma, time_scale, reversed_time: see SiT. further: other sizes that must be above 0. ValueError for sizes that
    do not divide or are not above 0.
    """

    final_layer: nn.Module
    blocks: Any

    def __init__(self, *, input_size: int, in_channels: int, depth: int, hidden_size: int, num_heads: int,
                 patch_size: int, gradient_checkpointing: bool, learn_sigma: bool = False, time_scale: float = 1.0,
                 reversed_time: bool = False, **further):  # fmt: skip
        super().__init__()
        check_positive(input_size=input_size, in_channels=in_channels, depth=depth, hidden_size=hidden_size,
                       num_heads=num_heads, patch_size=patch_size, time_scale=time_scale, **further)  # fmt: skip
        if hidden_size % num_heads:
            fits = [n for n in range(1, 33) if hidden_size % n == 0]
            raise ValueError(f"num_heads: {num_heads} does not divide hidden_size {hidden_size}; these do: {fits}.")
        if hidden_size % 4:
            raise ValueError(f"hidden_size: {hidden_size} must be a multiple of 4 (2-D sin-cos positions).")
        if input_size % patch_size:
            raise ValueError(f"patch_size: {patch_size} does not divide the latent's side {input_size}.")
        self.input_size, self.in_channels, self.patch_size = input_size, in_channels, patch_size
        self.depth, self.hidden_size = depth, hidden_size
        self.grid, self.prefix = (input_size // patch_size, input_size // patch_size), 0
        self.streams = {"image": (in_channels, input_size, input_size)}
        self.out_channels, self.time_scale = in_channels * (2 if learn_sigma else 1), time_scale
        self.gradient_checkpointing, self.reversed_time = gradient_checkpointing, reversed_time
        self.x_embedder = PatchEmbed(in_channels=in_channels, hidden_size=hidden_size, patch_size=patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.register_buffer("pos_embed", sincos_2d(hidden_size, self.grid), persistent=False)  # [1, N, D]

    @property
    def patch_features(self) -> int:
        """Numbers that the final layer gives a token: p*p*C."""
        return self.patch_size**2 * self.out_channels

    def initialise(self, small: Iterable[nn.Module]) -> None:
        """Xavier for linear layers (the patch embedding as one), N(0, 0.02) for the weights of `small`, zero for every
        modulation and the output, so that a block starts as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.start()
        for module in small:
            nn.init.normal_(module.weight, std=INIT_STD)
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight"):
                nn.init.zeros_(parameter)
        self.final_layer.zero()

    def walk(self, x: Streams, t: Tensor, cond: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """After each block: what a tap of it sees [B, P+N, D], and the condition [B, D] (or [B, P+N, D], one for each
        token) that the final layer would get there. Nothing is computed beyond the block that was asked for."""
        raise TypeError(f"{type(self).__name__} must define walk")

    def forward(self, x: Streams, t: Tensor, cond: Any, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """x {'image': [B, C, h, w]}, t [B] in [0, 1], cond -> the prediction (float32; with learn_sigma [B, 2C, h, w])
        and the taps; after block `stop`, if given, nothing more is computed.

        ValueError for a latent of another shape than the model was built for, and for a tap that is no block.
        """
        self._check_input(x, taps)
        tapped = {}
        for number, last in enumerate(self.walk(x, t, cond), start=1):
            if number in taps:
                tapped[number] = Tokens(last[0], prefix=self.prefix, grid=self.grid)
            if number == stop:
                return Denoised({}, tapped)
        return Denoised(self.directed(self.predict(*last)), tapped)

    def run(self, function, *arguments):
        """A block; with gradient checkpointing it is computed again in the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def _check_input(self, x, taps):
        for name, shape in self.streams.items():
            if name not in x or tuple(x[name].shape[1:]) != shape:
                given = list(x[name].shape) if name in x else "nothing"
                raise ValueError(f"{type(self).__name__}: {name!r} is [B, {', '.join(map(str, shape))}], got {given}.")
        wrong = [tap for tap in taps if not 1 <= tap <= self.depth]
        if wrong:
            raise ValueError(f"{type(self).__name__}: there is no block {wrong[0]} to tap; blocks are 1..{self.depth}.")

    def embed(self, x: Streams) -> Tensor:
        """The streams -> tokens [B, P+N, D]."""
        return self.x_embedder(x["image"]) + self.pos_embed

    def predict(self, h: Tensor, c: Tensor) -> Streams:
        """The last block's tokens [B, P+N, D] and the condition -> each stream's prediction, float32."""
        return {"image": self.unpatchify(self.final_layer(h, c)).float()}

    def directed(self, pred: Streams) -> Streams:
        """A prediction in this project's direction of time."""
        return {name: -v for name, v in pred.items()} if self.reversed_time else pred

    def steps_of(self, t: Tensor) -> Tensor:
        """t [B] in [0, 1] -> what is embedded."""
        t = 1 - t if self.reversed_time else t
        if self.time_scale == 1:
            return t
        scaled = t.float() * self.time_scale
        return scaled.round() if self.time_scale > 1 else scaled

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[B, h*w, p*p*C] -> [B, C, h*p, w*p], C the output's channels."""
        (h, w), p = self.grid, self.patch_size
        x = patches.unflatten(1, (h, w)).unflatten(-1, (p, p, self.out_channels))  # [B, h, w, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, h * p, w * p)
