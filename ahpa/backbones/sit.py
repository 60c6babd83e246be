"""SiT, the scalable interpolant transformer (arXiv:2401.08740), and DiT (arXiv:2212.09748), whose architecture it has.

Must match: the published layouts' keys and forward pass (REPA's fork, which predicts `in_channels` and no variance; DiT).
Sizes of the papers (depth x width x heads): S 12 x 384 x 6, B 12 x 768 x 12, L 24 x 1024 x 16, XL 28 x 1152 x 16.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import BACKBONES
from ..registry.contracts import Backbone, Denoised, Streams, Tokens
from .layers import Block, FinalLayer, LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_2d

INIT_STD = 0.02  # of the label table and the time MLP


@BACKBONES.register_module()
class SiT(Backbone):
    """SiT with adaLN-Zero, fixed sin-cos positions and taps by block number (1-based).

    input_size (the latent's side) and in_channels are derived. depth, hidden_size, num_heads, patch_size: the
    architecture; num_classes: labels 0..num_classes-1, and num_classes is the null class; qk_norm: LayerNorm over each
    head's q and k; gradient_checkpointing: blocks are computed again in the backward pass; learn_sigma: the output has
    twice the channels, the prediction and then v of its variance; time_scale: t is multiplied by it before the sinusoid,
    and rounded where it is above 1 (a number of steps: whole numbers are embedded); reversed_time: the network was
    trained with t = 1 as data, as the published SiT is, so it is given 1 - t and its velocity is negated. ValueError for
    sizes that do not divide or are not above 0.
    """

    demo = dict(depth=6, hidden_size=192, num_heads=6, patch_size=2, num_classes=10)

    def __init__(self, *, input_size: int, in_channels: int, num_classes: int = 1000, depth: int, hidden_size: int,
                 num_heads: int, patch_size: int = 2, mlp_ratio: float = 4.0, qk_norm: bool = False,
                 gradient_checkpointing: bool = False, learn_sigma: bool = False,
                 time_scale: float = 1.0, reversed_time: bool = False):  # fmt: skip
        super().__init__()
        self._check_positive(input_size=input_size, in_channels=in_channels, num_classes=num_classes, depth=depth,
                             hidden_size=hidden_size, num_heads=num_heads, patch_size=patch_size,
                             mlp_ratio=mlp_ratio, time_scale=time_scale)  # fmt: skip
        self._check_fit(input_size, hidden_size, num_heads, patch_size)
        self.input_size, self.in_channels, self.num_classes = input_size, in_channels, num_classes
        self.depth, self.hidden_size, self.patch_size = depth, hidden_size, patch_size
        self.grid, self.prefix = (input_size // patch_size, input_size // patch_size), 0
        self.out_channels, self.time_scale = in_channels * (2 if learn_sigma else 1), time_scale
        self.streams = {"image": (in_channels, input_size, input_size)}
        self.gradient_checkpointing, self.reversed_time = gradient_checkpointing, reversed_time
        self.x_embedder = PatchEmbed(in_channels=in_channels, hidden_size=hidden_size, patch_size=patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.register_buffer("pos_embed", sincos_2d(hidden_size, self.grid), persistent=False)  # [1, N, D]
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size * patch_size * self.out_channels)
        self._initialise()

    @staticmethod
    def _check_positive(**sizes):
        for name, size in sizes.items():
            if not size > 0:
                raise ValueError(f"{name}: must be above 0, got {size}.")

    @staticmethod
    def _check_fit(input_size, hidden_size, num_heads, patch_size):
        if hidden_size % num_heads:
            fits = [n for n in range(1, 33) if hidden_size % n == 0]
            raise ValueError(f"num_heads: {num_heads} does not divide hidden_size {hidden_size}; these do: {fits}.")
        if hidden_size % 4:
            raise ValueError(f"hidden_size: {hidden_size} must be a multiple of 4 (2-D sin-cos positions).")
        if input_size % patch_size:
            raise ValueError(f"patch_size: {patch_size} does not divide the latent's side {input_size}.")

    def _initialise(self):
        """Xavier for linear layers (the patch embedding as one), N(0, 0.02) for the label table and the time MLP, zero
        for every modulation and the output, so that a block starts as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=INIT_STD)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=INIT_STD)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=INIT_STD)
        for part in (*self.blocks, self.final_layer):
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Streams, t: Tensor, cond: Tensor, taps: frozenset[int] = frozenset(),
                stop: int | None = None) -> Denoised:  # fmt: skip
        """x {'image': [B, C, h, w]}, t [B] in [0, 1], cond: labels [B] -> the prediction (float32; with
        learn_sigma [B, 2C, h, w]) and the taps; after block `stop`, if given, nothing more is computed.

        ValueError for a latent of another shape than the model was built for, and for a tap that is no block.
        """
        self._check_input(x, taps)
        h = self.embed(x)  # [B, P+N, D]
        c = self.t_embedder(self.steps_of(t)) + self.y_embedder(cond)  # [B, D]
        tapped = {}
        for number, block in enumerate(self.blocks, start=1):
            h = self.run(block, h, c)
            if number in taps:
                tapped[number] = Tokens(h, prefix=self.prefix, grid=self.grid)
            if number == stop:
                return Denoised({}, tapped)
        return Denoised(self.directed(self.predict(h, c)), tapped)

    def run(self, function, *arguments) -> Tensor:
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
        """The last block's tokens and the condition [B, D] -> each stream's prediction, float32."""
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


@BACKBONES.register_module()
class DiT(SiT):
    """DiT: SiT's transformer over 1000 discrete steps, whose output is the noise and its variance (arXiv:2212.09748)."""

    def __init__(self, *, learn_sigma: bool = True, time_scale: float = 1000.0, **options):
        super().__init__(learn_sigma=learn_sigma, time_scale=time_scale, **options)
