"""Frozen vision encoders as priors: any vision transformer of timm (DINO, DINOv2, DINOv3, MAE,
SigLIP 2, PE ...). Those of open_clip are in clip_tower.py.

Must match: REPA's preprocessing of its teachers (arXiv:2410.06940).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import PRIORS, ConfigError, UserError
from ..registry.contracts import Backbone, Clean, CleanPrior, Features, Geometry, LevelSpec
from ..registry.precision import dtype_of, full_precision
from ..registry.shapes import shapes_only
from ..registry.timm_networks import loaded_network, meta_network, timm_file
from ..registry.validation import (
    block_number,
    boolean,
    choice,
    integer,
    is_integer,
    number,
    positive,
)
from ..registry.vision_files import bundled

DINO = "vit_base_patch14_dinov2.lvd142m"
STRIDE = 16  # pixels a token of the encoder's map: 8 of the autoencoder, patches of 2 latents


class EncoderSizes(NamedTuple):
    """Sizes of a vision transformer, known without weights.

    Attributes:
        width: Channels C of a token.
        depth: Number of blocks.
        patch: Side of a patch in pixels.
        prefix: Number of tokens before those of the patches: class and register tokens.
        has_class: Whether the first token is a class token.
    """

    width: int
    depth: int
    patch: int
    prefix: int
    has_class: bool


class VisionEncoder(CleanPrior):
    """Base of the vision encoders: preprocessing, positions and levels; a subclass has the network.

    Each sees the images as it was trained to: with its own mean and std, and of a side at which its
    patches lie on a grid of 16-pixel stride (REPA): patch x resolution / 16, that is
    224 (resolution / 256) for patches of 14 and the image itself for patches of 16. Positions are
    resampled bicubically to that grid. Register tokens are left out.

    Levels: "patch", the normalised patch tokens [B, C, h, w]; "cls", the class token [B, C], if
    there is one; with `inner` before them "block1", "block2", ...: the patch tokens after each
    earlier block, through the same last norm (DINOv2's way to read inner layers).

    Args:
        geometry: The model's sizes.
        sizes: The network's sizes.
        side: Side of its input in pixels, a multiple of the patch; None for the rule above.
        precision: "fp32", "bf16" or "fp16", of weights and computation.
        mean: Mean of each colour.
        std: Standard deviation of each colour.
        inner: Whether blocks before the last are levels too, for a router over layers.
        attention: {block: heads} of blocks whose attention logits are levels "attention<block>".

    Raises:
        ConfigError: If an option is not valid, or no whole number of patches fits the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        geometry: Geometry,
        sizes: EncoderSizes,
        side: int | None,
        precision: str,
        mean: Sequence[float],
        std: Sequence[float],
        inner: bool = False,
        attention: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(geometry=geometry)
        self.sizes = sizes
        self.dtype = dtype_of("precision", precision)
        self.input_side = self._input_side(side)
        self.inner: dict[str, int] = {}  # level -> block
        self.attention: dict[str, int] = {}  # level -> block
        self.levels = {}
        boolean("inner", inner)
        heads = dict(attention or {})
        for block in range(1, sizes.depth + 1):
            if block in heads:
                self.attention[f"attention{block}"] = block
                self.levels[f"attention{block}"] = LevelSpec(heads[block], STRIDE, attention=True)
            if inner and block < sizes.depth:
                self.inner[f"block{block}"] = block
                self.levels[f"block{block}"] = LevelSpec(sizes.width, STRIDE)
        self.levels["patch"] = LevelSpec(sizes.width, STRIDE)
        if sizes.has_class:
            self.levels["cls"] = LevelSpec(sizes.width, 0)
        means = [number("mean", value) for value in mean]
        stds = [positive("std", value) for value in std]
        for name, values in (("mean", means), ("std", stds)):
            value = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.network: Any = None

    # ---- what a subclass defines ----

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the network for inputs of `input_side`, with its weights, on the CPU.

        Raises:
            UserError: If the weights are missing or do not fit.
        """

    @abstractmethod
    def empty(self) -> nn.Module:
        """Build the network without weights; on the meta device it takes no memory."""

    @abstractmethod
    def tokens(self, network: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the network on preprocessed images.

        Returns:
            The patch tokens [B, N, C] after the last norm, and the class token [B, C] or None.
        """

    @abstractmethod
    def blocks(self, network: Any) -> Sequence[nn.Module]:
        """Return the blocks, which give [B, prefix + N, C]."""

    @abstractmethod
    def last_norm(self, network: Any) -> nn.Module:
        """Return the norm after the last block."""

    # ---- what they share ----

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""
        if self.network is None:
            network = self.build().to(device=self.mean.device, dtype=self.dtype)
            self.network = network.eval().requires_grad_(False)

    def probe(self, backbone: Backbone) -> Callable[[], Any]:
        """Return a call that runs the network once for one image on the meta device."""
        with shapes_only():
            network = self.empty().eval()
            images = torch.zeros(1, 3, self.input_side, self.input_side)
        return lambda: self.tokens(network, images)

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise images [B, 3, H, W] in [0, 1], then resize them bicubically without antialias,
        as REPA does."""
        x = (images - self.mean) / self.std
        side = self.input_side
        if x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)
        return x.to(self.dtype)

    @torch.no_grad()
    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return the named levels: maps [B, C, h, w], logits [B, H, N, N], the class token [B, C].

        Raises:
            UserError: If the batch has no images.
            ValueError: If the images are not of the model's resolution.
        """
        for name in levels:
            choice(f"{type(self).__name__}: level", name, tuple(self.levels))
        images = self._images(clean)
        self.load()
        network = self.network
        blocks = self.blocks(network)
        watched: dict[str, nn.Module] = {}
        for name, block in self.inner.items():
            if name in levels:
                watched[name] = blocks[block - 1]
        for name, block in self.attention.items():
            if name in levels:
                watched |= self._query_and_key(name, blocks[block - 1])
        with full_precision(self.mean.device), recorded(watched) as seen:
            patches, cls = self.tokens(network, self.preprocess(images))
            found = {}
            for name in self.levels:
                if name not in levels:
                    continue
                if name in self.attention:
                    found[name] = self._logits(seen[f"{name}.query"], seen[f"{name}.key"])
                elif name in self.inner:
                    inner = self.last_norm(network)(seen[name])
                    found[name] = as_map(inner[:, self.sizes.prefix :])
                elif name == "patch":
                    found[name] = as_map(patches)
                elif cls is not None:
                    found[name] = cls
        return found

    def _query_and_key(self, name: str, block: Any) -> dict[str, nn.Module]:
        """Return the modules whose outputs are a block's queries and keys [B, H, prefix + N, d].

        timm applies these norms, identities by default, to queries and keys before attention.
        """
        return {f"{name}.query": block.attn.q_norm, f"{name}.key": block.attn.k_norm}

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logits q k^T / sqrt(d) [B, H, N, N] of the patch tokens, in float32."""
        prefix = self.sizes.prefix
        scale = query.shape[-1] ** -0.5
        return (query[:, :, prefix:].float() * scale) @ key[:, :, prefix:].float().mT

    def _input_side(self, side: int | None) -> int:
        """Return the side to which images are resized."""
        patch = self.sizes.patch
        if side is not None:
            if is_integer(side) and side >= patch and side % patch == 0:
                return side
            raise ConfigError(
                f"side: must be a multiple of the encoder's patch {patch}, got {side!r}."
            )
        resolution = self.geometry.resolution
        if resolution % STRIDE:
            raise ConfigError(
                f"side: {resolution} pixels of an image are not a multiple of {STRIDE}; give "
                f"`side`, a multiple of the encoder's patch {patch}."
            )
        return patch * (resolution // STRIDE)

    def _images(self, clean: Clean) -> Tensor:
        name = type(self).__name__
        if clean.images is None:
            raise UserError(
                f"{name}: the batch has no images; train on images, or on latents stored with "
                "these features."
            )
        side = clean.images.shape[-1]
        if side != self.geometry.resolution:
            raise ValueError(
                f"{name}: was made for {self.geometry.resolution} pixels a side, got images of "
                f"{side}."
            )
        return clean.images


def as_map(tokens: Tensor) -> Tensor:
    """Turn the tokens [B, N, C] of a square grid into a map [B, C, h, w]."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules while they run.

    Args:
        modules: {name: module}.

    Yields:
        {name: output}, which fills as the modules run.
    """
    seen: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@PRIORS.register_module()
class TimmEncoder(VisionEncoder):
    """A vision transformer of timm, such as DINOv2-B/14 (REPA's default teacher).

    Attention levels hold the logits q k^T / sqrt(d_head) [B, H, N, N] of a block over its patch
    tokens, without the rows and columns of class and register tokens, after the block's query and
    key norms. HASTE (arXiv:2505.16792) takes blocks 9 to 12 of DINOv2-B, which it counts as 8 to 11
    from 0. Only the named blocks compute them.

    Args:
        geometry: The model's sizes.
        model: timm's name with its pretrained tag; or "bundled" for the small network that was
            trained on the synthetic shapes, which has its own weights and options.
        weights: None for timm's own weights, by the tag; a file or folder; or "random".
        side: Side of its input in pixels; None for patch x resolution / 16.
        precision: "fp32", "bf16" or "fp16", of weights and computation.
        seed: Seed of random weights.
        options: Options for timm's `create_model`, for networks of other sizes.
        inner: Whether the blocks before the last are levels too, "block1", "block2", ...
        attention: Blocks, from 1, whose attention logits are levels, "attention9", ...

    Raises:
        ConfigError: If timm has no such model, or it is not a plain vision transformer.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        model: str = DINO,
        weights: str | None = None,
        side: int | None = None,
        precision: str = "bf16",
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        inner: bool = False,
        attention: Sequence[int] = (),
    ) -> None:
        if model == "bundled":
            if weights is not None or options:
                raise ConfigError(
                    "model: 'bundled' brings its own weights and options; to give others, use "
                    f"timm's name of a model, such as {DINO!r}."
                )
            model, weights, options = bundled()
        create = dict(options or {})
        network = meta_network(model, create)
        config = network.pretrained_cfg
        super().__init__(
            geometry=geometry,
            sizes=sizes_of(network, model),
            side=side,
            precision=precision,
            mean=config["mean"],
            std=config["std"],
            inner=inner,
            attention=attention_heads(network, model, attention),
        )
        self.model = model
        self.weights = weights
        self.seed = integer("seed", seed)
        self.options = create
        self.kind = type(network)

    def build(self) -> nn.Module:
        """Build the network on the CPU, with random weights or those of a file or the hub."""
        if self.weights == "random":
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return self.empty()
        name = "TimmEncoder"
        path = timm_file(self.model, self.weights, name)
        options = {"img_size": self.input_side, **self.options}
        return loaded_network(self.model, path, name, kind=self.kind, options=options)

    def empty(self) -> nn.Module:
        """Build the network as timm initialises it."""
        import timm

        return timm.create_model(
            self.model, num_classes=0, img_size=self.input_side, **self.options
        )

    def blocks(self, network: Any) -> Sequence[nn.Module]:
        """Return the blocks."""
        return network.blocks

    def last_norm(self, network: Any) -> nn.Module:
        """Return the norm after the last block."""
        return network.norm

    def tokens(self, network: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the patch tokens [B, N, C] after the last norm, and the class token or None."""
        x = network.forward_features(images)  # [B, prefix + N, C]
        return x[:, self.sizes.prefix :], x[:, 0] if self.sizes.has_class else None


def sizes_of(network: Any, model: str) -> EncoderSizes:
    """Return the sizes of a network of timm.

    Raises:
        ConfigError: If it is not a plain vision transformer.
    """
    try:
        return EncoderSizes(
            width=network.embed_dim,
            depth=len(network.blocks),
            patch=network.patch_embed.patch_size[0],
            prefix=network.num_prefix_tokens,
            has_class="cls_token" in dict(network.named_parameters(recurse=False)),
        )
    except AttributeError:
        raise ConfigError(
            f"model: {model!r} is a {type(network).__name__}, not a plain vision transformer."
        ) from None


def attention_heads(network: Any, model: str, blocks: Sequence[int]) -> dict[int, int]:
    """Return {block: number of heads} of the blocks whose attention logits are wanted.

    Raises:
        ConfigError: If there is no such block, or its attention is not timm's plain `Attention`,
            whose queries and keys can be read.
    """
    from timm.models.vision_transformer import Attention

    if not isinstance(blocks, (list, tuple)):
        raise ConfigError(f"attention: must be a list of blocks, got {blocks!r}.")
    heads = {}
    for block in blocks:
        block_number("attention", block, len(network.blocks), of="encoder")
        attention = dict(network.blocks[block - 1].named_children()).get("attn")
        if not isinstance(attention, Attention):
            raise ConfigError(
                f"attention: the attention of {model!r} is a {type(attention).__name__}, whose "
                "logits cannot be read; use a model with timm's plain Attention, such as DINOv2."
            )
        heads[block] = attention.num_heads
    return heads
