"""What all transformers share: patch tokens with fixed positions, initial weights, the pass through
the blocks with its taps, and the way back from tokens to latents.

Shapes: B batch, N = h*w image tokens, P prefix tokens, D width, H heads, p patch size, C channels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import ConfigError
from ..registry.contracts import WHOLE, Backbone, BackboneOutput, Streams, Tap, TokenPlan
from ..registry.validation import block_number, boolean, choice, positive, positive_int
from ..registry.values import PLAN_KINDS, TAP_KINDS
from .lanes import Lanes
from .layers import FinalLayer, Heads, PatchEmbed, TimestepEmbedder, sincos_2d

INIT_STD = 0.02  # of the label table and of the MLPs of time and pooled text


class BlockState(NamedTuple):
    """The state of the pass after one block.

    Attributes:
        tokens: What a tap of the block reads, [B, P+N, D].
        cond: The condition the final layer would get here, [B, D] or [B, P+N, D].
        heads: Heads of the block's attention over the image stream; None if not asked for.
    """

    tokens: Tensor
    cond: Tensor
    heads: Heads | None

    def tap(self, kind: str) -> Tensor:
        """Return a tap of this kind; see `Tap`."""
        if kind == "tokens":
            return self.tokens
        assert self.heads is not None, "the heads of this block were not kept"
        if kind == "attention":
            return self.heads.logits()
        return self.heads.k if kind == "keys" else self.heads.v


class PatchTransformer(Backbone):
    """Base class of SiT and MMDiT, which define the conditions, the blocks and `walk`.

    The attention itself always uses PyTorch's fused kernel. Taps of keys, values and attention
    logits are taken from the same queries, keys and values, so they never change the prediction;
    blocks without such a tap compute nothing extra.

    Args:
        input_size: Side of the latent; derived from the tokenizer.
        in_channels: Channels C of the latent; derived from the tokenizer.
        depth: Number of blocks.
        hidden_size: Width D.
        num_heads: Attention heads of a block.
        patch_size: Side p of the patch of latents that makes one token.
        mlp_ratio: Hidden width of the MLPs, relative to D.
        gradient_checkpointing: Whether to recompute blocks in the backward pass to save memory.
        learn_sigma: Whether the output has 2C channels: the prediction, then its variance.
        time_scale: Factor on t before it is embedded; above 1 the product is rounded, since it
            counts discrete steps.
        reversed_time: For checkpoints trained with t = 1 as data: t is mirrored and the
            prediction negated.

    Raises:
        ConfigError: If a size is not positive, or if sizes do not divide.
    """

    tap_kinds = frozenset(TAP_KINDS)
    plan_kinds = frozenset(PLAN_KINDS)
    pos_embed: Tensor
    num_heads: int
    final_layer: FinalLayer

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        patch_size: int,
        mlp_ratio: float,
        gradient_checkpointing: bool,
        learn_sigma: bool = False,
        time_scale: float = 1.0,
        reversed_time: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = positive_int("input_size", input_size)
        self.in_channels = positive_int("in_channels", in_channels)
        self.depth = positive_int("depth", depth)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_heads = positive_int("num_heads", num_heads)
        self.patch_size = positive_int("patch_size", patch_size)
        self.mlp_ratio = positive("mlp_ratio", mlp_ratio)
        self.gradient_checkpointing = boolean("gradient_checkpointing", gradient_checkpointing)
        self.time_scale = positive("time_scale", time_scale)
        self.reversed_time = boolean("reversed_time", reversed_time)
        self.out_channels = in_channels * (2 if boolean("learn_sigma", learn_sigma) else 1)
        self._check_divisibility()

        side = input_size // patch_size
        self.grid = (side, side)
        self.streams = {"image": (in_channels, input_size, input_size)}
        self.x_embedder = PatchEmbed(
            in_channels=in_channels, hidden_size=hidden_size, patch_size=patch_size
        )
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.register_buffer("pos_embed", sincos_2d(hidden_size, self.grid), persistent=False)

    def _check_divisibility(self) -> None:
        width, heads = self.hidden_size, self.num_heads
        if width % heads:
            fits = [number for number in range(1, 33) if width % number == 0]
            raise ConfigError(
                f"num_heads: {heads} does not divide hidden_size {width}; these do: {fits}."
            )
        if width % 4:
            raise ConfigError(
                f"hidden_size: must be a multiple of 4 (2-D sin-cos positions), got {width}."
            )
        if self.input_size % self.patch_size:
            raise ConfigError(
                f"patch_size: {self.patch_size} does not divide the latent's side "
                f"{self.input_size}."
            )

    @property
    def patch_features(self) -> int:
        """Channels that the final layer gives a token: p*p*out_channels."""
        return self.patch_size**2 * self.out_channels

    @property
    def num_tokens(self) -> int:
        """Number of image tokens N."""
        return self.grid[0] * self.grid[1]

    # ---- initial weights ---------------------------------------------------------------------

    @abstractmethod
    def initialise(self) -> None:
        """Set the weights with which training starts."""

    def initialise_adaln_zero(self, small: Iterable[nn.Linear | nn.Embedding]) -> None:
        """Initialise so that every block starts as the identity (DiT, section 3.2).

        Linear layers and the patch embedding get Xavier weights and zero biases; modulations and
        the output are zero.

        Args:
            small: Layers whose weights are drawn from N(0, 0.02) instead.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.initialise()
        for layer in small:
            nn.init.normal_(layer.weight, std=INIT_STD)
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight"):
                nn.init.zeros_(parameter)
        self.final_layer.initialise()

    # ---- the forward pass --------------------------------------------------------------------

    @abstractmethod
    def walk(
        self, x: Streams, t: Tensor, cond: Any, keep: frozenset[int], lanes: Lanes
    ) -> Iterator[BlockState]:
        """Yield the state after each block, computing no block before it is asked for.

        Args:
            x: The noised streams.
            t: Times in [0, 1], [B] or [B, N].
            cond: The condition.
            keep: Numbers of the blocks whose attention heads are to be returned.
            lanes: The tokens that are in each block.
        """

    def forward(
        self,
        x: Streams,
        t: Tensor,
        cond: Any,
        taps: frozenset[Tap] = frozenset(),
        stop: int | None = None,
        plan: TokenPlan = WHOLE,
    ) -> BackboneOutput:
        """Predict from the noised streams.

        Args:
            x: The noised streams, {'image': [B, C, h*p, w*p], ...}.
            t: Times in [0, 1], [B]; or [B, N], one for each image token.
            cond: The condition.
            taps: What to return beside the prediction.
            stop: Compute no block after this one; `pred` is empty then.
            plan: Which image tokens are in a block and attend to each other.

        Raises:
            ValueError: If an input has the wrong shape, or a tap does not exist.
        """
        self._check_streams(x)
        self._check_time(t, batch=len(x["image"]))
        self._check_condition(cond)
        self._check_taps(taps, stop)
        self._check_plan(plan, taps)
        keep = frozenset(tap.block for tap in taps if tap.kind != "tokens")
        tapped: dict[Tap, Tensor] = {}
        lanes = Lanes(plan, self.prefix)
        for number, state in enumerate(self.walk(x, t, cond, keep, lanes), start=1):
            for tap in sorted(taps):
                if tap.block == number:
                    tapped[tap] = state.tap(tap.kind)
            if number == stop:
                return BackboneOutput({}, tapped, self.prefix, self.grid, plan.route)
        pred = self.in_project_time(self.predict(state.tokens, state.cond))
        return BackboneOutput(pred, tapped, self.prefix, self.grid, plan.route)

    def run(self, block: nn.Module, *arguments: Any) -> Any:
        """Call a block; with gradient checkpointing it is computed again in the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def embed(self, x: Streams) -> Tensor:
        """Embed the streams as tokens [B, P+N, D]."""
        return self.x_embedder(x["image"]) + self.pos_embed

    def predict(self, tokens: Tensor, cond: Tensor) -> Streams:
        """Map the last block's tokens [B, P+N, D] to each stream's prediction, float32."""
        return {"image": self.unpatchify(self.final_layer(tokens, cond)).float()}

    def in_project_time(self, pred: Streams) -> Streams:
        """Return a prediction in this project's direction of time."""
        if not self.reversed_time:
            return pred
        return {name: -velocity for name, velocity in pred.items()}

    def time_input(self, t: Tensor) -> Tensor:
        """Return the number that is embedded for each time t in [0, 1]."""
        t = 1 - t if self.reversed_time else t
        if self.time_scale == 1:
            return t
        scaled = t.float() * self.time_scale
        return scaled.round() if self.time_scale > 1 else scaled

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Arrange patches [B, h*w, p*p*C] as [B, C, h*p, w*p], with C = out_channels."""
        h, w = self.grid
        p = self.patch_size
        x = patches.unflatten(1, (h, w)).unflatten(-1, (p, p, self.out_channels))
        x = x.permute(0, 5, 1, 3, 2, 4)  # [B, C, h, p, w, p]
        return x.reshape(len(x), self.out_channels, h * p, w * p)

    # ---- checks of the inputs ----------------------------------------------------------------

    def _check_streams(self, x: Streams) -> None:
        for name, shape in self.streams.items():
            if name in x and tuple(x[name].shape[1:]) == shape:
                continue
            wanted = ", ".join(map(str, shape))
            given = list(x[name].shape) if name in x else "nothing"
            raise ValueError(f"{type(self).__name__}: {name!r} must be [B, {wanted}], got {given}.")

    def _check_time(self, t: Tensor, batch: int) -> None:
        if t.shape == (batch,):
            return
        if t.shape != (batch, self.num_tokens):
            raise ValueError(
                f"{type(self).__name__}: t must be [{batch}], or [{batch}, {self.num_tokens}] for "
                f"a time per token, got {list(t.shape)}."
            )
        if self.prefix:
            raise ValueError(
                f"{type(self).__name__}: t must be [B]; with a time per token the {self.prefix} "
                "prefix token(s) would have none."
            )

    def _check_condition(self, cond: Any) -> None:
        """Raise ValueError for a condition that does not fit the backbone."""

    def _check_taps(self, taps: frozenset[Tap], stop: int | None) -> None:
        name = type(self).__name__
        for tap in taps:
            block_number(f"{name}: taps", tap.block, self.depth)
            choice(f"{name}: taps", tap.kind, sorted(self.tap_kinds))
        if stop is not None:
            block_number(f"{name}: stop", stop, self.depth)
            behind = [tap.block for tap in taps if tap.block > stop]
            if behind:
                raise ConfigError(f"{name}: taps: block {behind[0]} lies behind stop={stop}.")

    def _check_plan(self, plan: TokenPlan, taps: frozenset[Tap]) -> None:
        name = type(self).__name__
        route, groups = plan
        if groups is not None and "groups" not in self.plan_kinds:
            raise ConfigError(f"{name}: tokens cannot attend within groups only.")
        if groups is not None and self.prefix:
            raise ConfigError(
                f"{name}: its {self.prefix} prefix token(s) belong to no group of tokens."
            )
        if route is not None and not 1 <= route.first <= route.last < self.depth:
            raise ConfigError(
                f"{name}: a route must lie before the last block {self.depth}, got blocks "
                f"{route.first}..{route.last}."
            )
        for tap in sorted(taps):
            if tap.kind != "tokens" and route is not None and route.skips(tap.block):
                raise ConfigError(
                    f"{name}: no taps of {tap.kind} of block {tap.block}, which a part of the "
                    "tokens skips."
                )
            if tap.kind == "attention" and groups is not None:
                raise ConfigError(
                    f"{name}: no taps of attention where tokens attend within their group only."
                )
