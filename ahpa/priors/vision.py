"""Frozen vision encoders as priors: any vision transformer of timm (DINO, DINOv2, DINOv3, MAE, SigLIP 2, PE ...); those of
open_clip stand in clip_tower.py.

Each sees the images as it was trained to: its own mean and std, and a side at which its patches lie on the token grid of
a 16-pixel stride (REPA): patch x res / 16, that is 224 (res / 256) for patch 14 and the image itself for patch 16.
Positions are resampled to that grid bicubically. Levels: 'patch', the normalised patch tokens as a map [B, C, h, w]; and
'cls', the class token [B, C], where there is one; with `inner`, before them 'block1', 'block2', ...: the patch tokens after
each earlier block, through the same last norm (DINOv2's way of reading inner layers). Register tokens are left out.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import PRIORS, ConfigError, UserError, nearest
from ..registry.contracts import Features, LevelSpec, Prior, Step
from ..registry.hub import hub_file
from ..registry.numerics import full_precision
from .vision_files import FILES, HINT, bundled, first_line, read_weights, unset_parameters, weights_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DINO = "vit_base_patch14_dinov2.lvd142m"
STRIDE = 16  # pixels a token: 8x of the autoencoder, patches of 2 latents


class VisionEncoder(Prior):
    """Base: sizes known without weights, the preprocessing, the levels; a subclass builds the network.

    side: the input's side in pixels (None: patch x res / 16). precision: of weights and computation. inner: whether the
    outputs of the blocks before the last are levels too, for a router over layers.
    """

    width: int  # C
    depth: int  # blocks
    patch: int  # pixels
    has_class: bool
    skipped: int  # tokens before the patches'
    requested: tuple[str, ...] = ()

    def __init__(self, *, side: int | None, precision: str, mean: Sequence[float], std: Sequence[float],
                 inner: bool = False):  # fmt: skip
        super().__init__()
        self.inner = {f"block{number}": number for number in range(1, self.depth)} if inner else {}
        if precision not in DTYPES:
            raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
        if side is not None and (not isinstance(side, int) or side < self.patch or side % self.patch):
            raise ConfigError(f"side: must be a multiple of the encoder's patch {self.patch}, got {side!r}.")
        self.side, self.image_side = side, None
        self.dtype = DTYPES[precision]
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def build(self, side: int) -> torch.nn.Module:
        """The network for inputs of this side, with its weights. UserError where they are not."""
        raise TypeError(f"{type(self).__name__} must define build(side)")

    def tokens(self, network, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Preprocessed images -> (patch tokens [B, N, C], class token [B, C] or None)."""
        raise TypeError(f"{type(self).__name__} must define tokens(network, images)")

    def layers(self, network) -> tuple[Sequence[torch.nn.Module], torch.nn.Module]:
        """-> (the blocks, which give [B, skipped + N, C]; the last norm)."""
        raise TypeError(f"{type(self).__name__} must define layers(network)")

    def bind(self, *, tokenizer, backbone) -> None:
        """Takes the images' side from the model, so that `load` can read the weights before the first step."""
        if tokenizer is not None and backbone is not None:
            self.image_side = tokenizer.downsample * backbone.streams["image"][-1]

    def spec(self, backbone) -> dict[str, LevelSpec]:
        levels = {name: LevelSpec(self.width, STRIDE) for name in (*self.inner, "patch")}
        return levels | ({"cls": LevelSpec(self.width, 0)} if self.has_class else {})

    def request(self, levels: Sequence[str]) -> None:
        self.requested = tuple(levels)

    def input_side(self, image_side: int) -> int:
        """The side to which images are resized. ConfigError where no whole number of patches fits."""
        if self.side is not None:
            return self.side
        if image_side % STRIDE:
            raise ConfigError(f"side: images of {image_side} pixels are no multiple of {STRIDE}; give `side`, a multiple "
                              f"of the patch {self.patch}.")  # fmt: skip
        return self.patch * (image_side // STRIDE)

    def load(self) -> None:
        """Reads the weights now, if the images' side is known; else the first step does."""
        if self.image_side is not None:
            self.network(self.image_side)

    def network(self, image_side: int) -> torch.nn.Module:
        side = self.input_side(image_side)
        if "encoder" not in self.__dict__.get("held", {}):
            self.hold(encoder=self.build(side).to(device=self.mean.device, dtype=self.dtype))
            self.built_for = side
        if side != self.built_for:
            raise ValueError(
                f"{type(self).__name__}: inputs of {side} pixels; its positions were made for {self.built_for}."
            )
        return self.held["encoder"]

    def empty(self, side: int) -> torch.nn.Module:
        """The network without weights; under `torch.device('meta')` it takes no memory."""
        raise TypeError(f"{type(self).__name__} must define empty(side)")

    def probe(self, backbone):
        if self.image_side is None:
            return None
        side = self.input_side(self.image_side)
        with torch.device("meta"):
            network, images = self.empty(side).eval(), torch.zeros(1, 3, side, side)
        return lambda: self.tokens(network, images)

    def preprocess(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> normalised, then resized bicubically (no antialias), as REPA does."""
        x = (images - self.mean) / self.std
        side = self.input_side(images.shape[-1])
        if x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)
        return x.to(self.dtype)

    @torch.no_grad()
    def forward(self, step: Step) -> Features:
        """-> {'block<k>' and 'patch': [B, C, h, w], 'cls': [B, C]}; of the inner ones those that were requested. UserError
        where there is no image to look at."""
        if step.images is None:
            raise UserError(f"{type(self).__name__}: the batch has no images; train on images, or on latents stored with "
                            "these features.")  # fmt: skip
        network = self.network(step.images.shape[-1])
        blocks, norm = self.layers(network)
        seen: dict[str, Tensor] = {}
        hooks = [blocks[number - 1].register_forward_hook(keep(seen, name))
                 for name, number in self.inner.items() if name in self.requested]  # fmt: skip
        try:
            with full_precision(self.mean.device):
                seen["patch"], cls = self.tokens(network, self.preprocess(step.images))
                found = {name: x if name == "patch" else norm(x)[:, self.skipped :] for name, x in seen.items()}
        finally:
            for hook in hooks:
                hook.remove()
        side = int(found["patch"].shape[1] ** 0.5)
        features = {name: x.transpose(1, 2).unflatten(2, (side, side)) for name, x in found.items()}
        return features | ({} if cls is None else {"cls": cls})


def keep(seen: dict[str, Tensor], name: str):
    """A hook that keeps a block's output under a name."""

    def hook(block, given, output) -> None:
        seen[name] = output

    return hook


@PRIORS.register_module()
class TimmEncoder(VisionEncoder):
    """A vision transformer of timm, such as DINOv2-B/14 (REPA's default teacher).

    model: timm's name with its pretrained tag, or 'bundled': the small one that was trained on the drawn set, which brings
    its weights and options. weights: None (timm's own, by the tag), a file or folder, or 'random' with `seed`. options:
    passed on to timm's `create_model`, for networks of other sizes. inner: see the module. ConfigError for a name that
    timm does not have or that is no vision transformer, UserError where weights are missing.
    """

    demo = dict(model="bundled", weights=None, options=None, side=None, precision="fp32")

    def __init__(self, *, model: str = DINO, weights: str | None = None,
                 side: int | None = None, precision: str = "bf16", seed: int = 0, options=None,
                 inner: bool = False):  # fmt: skip
        import timm

        if model == "bundled":
            if weights is not None or options:
                raise ConfigError("model: 'bundled' brings its own weights and options; for others give timm's name, such "
                                  f"as {DINO!r}.")  # fmt: skip
            model, weights, options = bundled()
        if not timm.is_model(model):
            raise ConfigError(f"model: timm has no {model!r}{nearest(model, near_names(model))}")
        self.model, self.weights, self.seed, self.options = model, weights, seed, dict(options or {})
        with torch.device("meta"):
            network = timm.create_model(model, num_classes=0, **self.options)
        if not hasattr(network, "num_prefix_tokens") or not hasattr(network, "patch_embed"):
            raise ConfigError(f"model: {model!r} is a {type(network).__name__}, no plain vision transformer.")
        self.kind, self.width, self.patch = type(network), network.embed_dim, network.patch_embed.patch_size[0]
        self.skipped, self.has_class = network.num_prefix_tokens, getattr(network, "cls_token", None) is not None
        cfg, self.depth = network.pretrained_cfg, len(network.blocks)
        super().__init__(side=side, precision=precision, mean=cfg["mean"], std=cfg["std"], inner=inner)

    def build(self, side):
        import timm

        options = dict(num_classes=0, img_size=side, **self.options)
        with torch.device("cpu"):
            if self.weights == "random":
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    return timm.create_model(self.model, **options)
            path = self.hub_weights() if self.weights is None else weights_file(self.weights, "TimmEncoder")
            overlay = dict(state_dict=read_weights(path, "TimmEncoder"), custom_load=False)
            try:
                with unset_parameters(self.kind) as unset:
                    network = timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
            except Exception as error:  # other keys or shapes
                raise UserError(f"TimmEncoder: {path} does not fit {self.model!r}: {first_line(error)}") from error
            if unset:
                raise UserError(f"TimmEncoder: {path} does not fit {self.model!r}: it has no {', '.join(unset[:3])}"
                                f"{f' and {len(unset) - 3} more' if len(unset) > 3 else ''}.")  # fmt: skip
            return network

    def empty(self, side):
        import timm

        return timm.create_model(self.model, num_classes=0, img_size=side, **self.options)

    def hub_weights(self) -> Path:
        """timm's own weights of this name, from the local cache or the hub. UserError where they are not."""
        import timm

        cfg = timm.get_pretrained_cfg(self.model)
        if cfg is None or not cfg.hf_hub_id:
            raise UserError(f"TimmEncoder: timm has no weights for {self.model!r}: its name lacks a pretrained tag such as "
                            f"{DINO!r}. {HINT}")  # fmt: skip
        names = (cfg.hf_hub_filename or FILES[0], "pytorch_model.bin")
        return hub_file(cfg.hf_hub_id, names, what="the vision encoder", hint=HINT)

    def layers(self, network):
        return network.blocks, network.norm

    def tokens(self, network, images):
        x = network.forward_features(images)  # [B, P+N, C] after the last norm
        return x[:, self.skipped :], x[:, 0] if self.has_class else None


def near_names(model: str) -> list[str]:
    """timm's pretrained transformers whose names are like this one."""
    import difflib

    import timm

    return difflib.get_close_matches(model, timm.list_pretrained("*vit*"), n=5, cutoff=0.3)
