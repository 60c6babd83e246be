"""The image towers of open_clip (CLIP, arXiv:2103.00020) as a prior."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import PRIORS, ConfigError, UserError, nearest
from ..registry.contracts import Geometry
from ..registry.hub import hub_file
from ..registry.vision_files import HINT, OPEN_CLIP_FILES, first_line, weights_file
from ..registry.weight_files import read_contents
from .vision import EncoderSizes, VisionEncoder


@PRIORS.register_module()
class OpenCLIPEncoder(VisionEncoder):
    """The image tower of an open_clip model, such as CLIP ViT-L/14.

    Its levels are the patch tokens after the last norm, and the class token before the projection.

    Args:
        geometry: The model's sizes.
        model: open_clip's name of the architecture. Weights from a file that were trained with
            QuickGELU need a name that ends in "-quickgelu".
        weights: A pretrained tag of open_clip, which also sets mean, std and activation; a file or
            folder, with OpenAI's mean and std unless given; or "random".
        side: Side of its input in pixels; None for patch x resolution / 16.
        precision: "fp32", "bf16" or "fp16", of weights and computation.
        mean: Mean of each colour; None for the tag's.
        std: Standard deviation of each colour; None for the tag's.
        seed: Seed of random weights.
        sizes: Changes of the tower's sizes, such as dict(width=96, layers=3).
        inner: Whether the blocks before the last are levels too, "block1", "block2", ...

    Raises:
        ConfigError: If open_clip has no such architecture, or its tower is not a plain transformer.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        model: str = "ViT-L-14",
        weights: str = "openai",
        side: int | None = None,
        precision: str = "bf16",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        inner: bool = False,
    ) -> None:
        import open_clip
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        config = open_clip.get_model_config(model)
        if config is None:
            known = open_clip.list_models()
            raise ConfigError(f"model: open_clip has no {model!r}{nearest(model, known)}")
        vision = config["vision_cfg"]
        if "timm_model_name" in vision or isinstance(vision.get("layers"), list):
            raise ConfigError(
                f"model: the image tower of {model!r} is not a plain vision transformer; use "
                "TimmEncoder."
            )
        changes = dict(sizes or {})
        tag = open_clip.get_pretrained_cfg(model, weights) or {}  # empty if it is not a tag
        tower = {**vision, **changes}
        super().__init__(
            geometry=geometry,
            sizes=EncoderSizes(
                width=tower["width"],
                depth=tower["layers"],
                patch=tower["patch_size"],
                prefix=1,
                has_class=True,
            ),
            side=side,
            precision=precision,
            mean=mean or tag.get("mean") or OPENAI_DATASET_MEAN,
            std=std or tag.get("std") or OPENAI_DATASET_STD,
            inner=inner,
        )
        self.model = model
        self.weights = weights
        self.seed = seed
        self.changes = changes
        self.tag = tag

    def find(self) -> Path:
        """Return the weight file: for a tag from the local cache or the hub, else as given.

        Raises:
            UserError: If there is none.
        """
        if not self.tag:
            return weights_file(self.weights, "OpenCLIPEncoder")
        repository = self.tag["hf_hub"].rstrip("/")
        return hub_file(repository, OPEN_CLIP_FILES, what="the vision encoder", hint=HINT)

    def build(self) -> nn.Module:
        """Build the tower on the CPU, with random weights or those of a file or the hub."""
        path = None if self.weights == "random" else self.find()
        if path is not None:
            read_contents(path, "OpenCLIPEncoder")  # refuse unsafe files before open_clip opens it
        try:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return self.tower(path)
        except Exception as error:  # other names or shapes
            misfit = f"OpenCLIPEncoder: {path} does not fit {self.model!r}"
            raise UserError(f"{misfit}: {first_line(error)}") from error

    def empty(self) -> nn.Module:
        """Build the tower as open_clip initialises it."""
        return self.tower(None)

    def tower(self, path: Path | None) -> nn.Module:
        """Build the image tower, without its projection; None for no weights."""
        import open_clip

        config = open_clip.get_model_config(self.model)
        changes = {key: value for key, value in self.changes.items() if key != "embed_dim"}
        side = self.input_side
        whole = open_clip.create_model(
            self.model,
            pretrained=None if path is None else str(path),
            device=torch.empty(0).device,  # get_default_device() of torch 2.6 ignores `with device`
            vision_cfg={**config["vision_cfg"], **changes, "image_size": side},
            force_image_size=side,
            embed_dim=self.changes.get("embed_dim", config["embed_dim"]),
            force_quick_gelu=bool(self.tag.get("quick_gelu")),
        )
        whole.visual.output_tokens = True
        whole.visual.proj = None
        return whole.visual

    def blocks(self, network: Any) -> Sequence[nn.Module]:
        """Return the blocks."""
        return network.transformer.resblocks

    def last_norm(self, network: Any) -> nn.Module:
        """Return the norm after the last block."""
        return network.ln_post

    def tokens(self, network: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the patch tokens [B, N, C] after the last norm, and the class token [B, C]."""
        cls, patches = network(images)
        return patches, cls
