"""Any network of timm as a feature extractor, and the small encoder that ships with ahpa."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import EXTRACTORS, ConfigError
from ..registry.precision import full_precision
from ..registry.timm_networks import loaded_network, meta_network, timm_file
from ..registry.validation import integer, positive_int
from ..registry.vision_files import bundled
from .extractors import NetworkExtractor, file_of_variable, resized

RANDOM = "random"


@EXTRACTORS.register_module(name="timm")
class TimmFeatures(NetworkExtractor):
    """A network of timm without its classifier, such as DINOv2-L.

    Outputs: "pooled", as the network itself pools its features for a classifier; of a vision
    transformer also "cls", its class token, if it has one, and "mean", the mean of its patch tokens
    after the last norm. Images are resized as PIL does (bicubic, antialias, 8 bits) and normalised
    by the network's own mean and std.

    Args:
        model: timm's name with its pretrained tag.
        weights: None for timm's own weights, by the tag; a file or folder; or "random".
        side: Side of its input in pixels; None for that of its pretraining.
        seed: Seed of random weights.
        options: Options for timm's `create_model`, for networks of other sizes.

    Raises:
        ConfigError: If timm has no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        model: str,
        weights: str | None = None,
        side: int | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.model = model
        self.weights = weights
        self.seed = integer("seed", seed)
        plain: Any = meta_network(model, dict(options or {}))
        config = plain.pretrained_cfg
        self.side = config["input_size"][-1] if side is None else positive_int("side", side)
        self.options = dict(options or {})
        self.is_transformer = isinstance(plain, VisionTransformer)
        if self.is_transformer:
            patch = plain.patch_embed.patch_size[0]
            if self.side % patch:
                raise ConfigError(f"side: must be a multiple of its patch, {patch}, got {side!r}.")
            self.options["img_size"] = self.side
        self.kind = type(plain)
        for name in ("mean", "std"):
            value = torch.tensor(config[name], dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        try:
            network: Any = meta_network(model, self.options)
            pixels = torch.zeros(1, 3, self.side, self.side, device="meta")
            found = self.features(network.eval(), pixels)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"side: {model!r} cannot take {self.side} pixels: {error}") from error
        self.outputs = {name: value.shape[1] for name, value in found.items()}

    def weight_file(self) -> Path | None:
        """Return the file of the weights; None for random ones."""
        if self.weights == RANDOM:
            return None
        given = self.weights
        if given is None:
            names = [f"{self.model}.safetensors", f"{self.model}.bin", self.model]
            found = file_of_variable(names)
            given = None if found is None else str(found)
        return timm_file(self.model, given, f"feature extractor {self.model!r}")

    def build(self, path: Path | None) -> nn.Module:
        """Build the network on the CPU."""
        import timm

        if path is None:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return timm.create_model(self.model, num_classes=0, **self.options)
        what = f"feature extractor {self.model!r}"
        return loaded_network(self.model, path, what, kind=self.kind, options=self.options)

    def features(self, network: Any, pixels: Tensor) -> dict[str, Tensor]:
        """Run the network on normalised pixels [B, 3, side, side]."""
        tokens = network.forward_features(pixels)
        found = {"pooled": network.forward_head(tokens, pre_logits=True).flatten(1)}
        if self.is_transformer:
            if network.cls_token is not None:
                found["cls"] = tokens[:, 0]
            found["mean"] = tokens[:, network.num_prefix_tokens :].mean(1)
        return found

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the features of images, uint8 [B, 3, H, W]."""
        self.load()
        with full_precision(images.device):
            pixels = (resized(images, self.side) / 255 - self.mean) / self.std
            found = self.features(self.network, pixels)
        return {name: value.float() for name, value in found.items()}

    def description(self) -> dict[str, Any]:
        """Return the network, its options and its preprocessing."""
        return {
            "network": f"timm {self.model}",
            "options": dict(self.options),
            "seed": self.seed if self.weights == RANDOM else None,
            "side": self.side,
            "resize": "bicubic, antialias, 8 bits",
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
        }


@EXTRACTORS.register_module(name="tiny-vit")
class TinyViTFeatures(TimmFeatures):
    """The small vision transformer that ships with ahpa, trained on the drawn shapes.

    It needs no download and serves demonstrations and tests. Its figures mean nothing for
    photographs and are not comparable with those of any other network.

    Args:
        side: Side of its input in pixels; it was trained at 64.
    """

    def __init__(self, *, side: int = 64) -> None:
        model, weights, options = bundled()
        super().__init__(model=model, weights=weights, side=side, options=options)
