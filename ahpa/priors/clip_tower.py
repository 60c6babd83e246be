"""The image towers of open_clip (CLIP, arXiv:2103.00020) as a prior."""

from pathlib import Path

import torch

from ..registry import PRIORS, ConfigError, UserError, nearest
from ..registry.hub import hub_file
from .vision import VisionEncoder
from .vision_files import FILES, HINT, first_line, read_weights, weights_file


@PRIORS.register_module()
class OpenCLIPEncoder(VisionEncoder):
    """The image tower of an open_clip model, such as CLIP ViT-L/14: patch tokens after its last norm, and the class token
    before the projection.

    model: open_clip's architecture. weights: a pretrained tag of open_clip ('openai'), which also says mean, std and
    activation; a file or folder (with OpenAI's mean and std unless given; its networks need a model '...-quickgelu'); or
    'random' with `seed`. sizes: the tower's sizes, for networks of one's own. inner: see vision.py. ConfigError for an
    architecture that is unknown or no plain transformer, UserError where weights are missing. Its `--demo` is small and
    untrained.
    """

    demo = dict(model="ViT-B-32", weights="random", precision="fp32", side=None,
                sizes=dict(embed_dim=32, width=96, layers=3, patch_size=16))  # fmt: skip
    has_class, skipped = True, 1

    def __init__(self, *, model: str = "ViT-L-14", weights: str = "openai", side: int | None = None,
                 precision: str = "bf16", mean=None, std=None, seed: int = 0, sizes=None, inner: bool = False):  # fmt: skip
        import open_clip
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        config = open_clip.get_model_config(model)
        if config is None:
            raise ConfigError(f"model: open_clip has no {model!r}{nearest(model, open_clip.list_models())}")
        vision = config["vision_cfg"]
        if "timm_model_name" in vision or isinstance(vision.get("layers"), list):
            raise ConfigError(f"model: the image tower of {model!r} is no plain vision transformer; use TimmEncoder.")
        self.model, self.weights, self.seed, self.sizes = model, weights, seed, dict(sizes or {})
        self.known = open_clip.get_pretrained_cfg(model, weights) or {}  # empty for what is no tag
        self.width = self.sizes.get("width", vision["width"])
        self.patch = self.sizes.get("patch_size", vision["patch_size"])
        self.depth = self.sizes.get("layers", vision["layers"])
        super().__init__(side=side, precision=precision, mean=mean or self.known.get("mean") or OPENAI_DATASET_MEAN,
                         std=std or self.known.get("std") or OPENAI_DATASET_STD, inner=inner)  # fmt: skip

    def find(self) -> Path:
        """The weights' file: of a tag from the local cache or the hub, else the file or folder that was given."""
        if not self.known:
            return weights_file(self.weights, "OpenCLIPEncoder")
        repository = self.known["hf_hub"].rstrip("/")
        return hub_file(repository, FILES[1::2], what="the vision encoder", hint=HINT)

    def empty(self, side):
        return self.tower(side, None)

    def tower(self, side: int, path: Path | None) -> torch.nn.Module:
        import open_clip

        config = open_clip.get_model_config(self.model)
        sizes = {key: value for key, value in self.sizes.items() if key != "embed_dim"}
        options = dict(vision_cfg={**config["vision_cfg"], **sizes, "image_size": side}, force_image_size=side,
                       embed_dim=self.sizes.get("embed_dim", config["embed_dim"]),
                       force_quick_gelu=bool(self.known.get("quick_gelu")))  # fmt: skip
        whole = open_clip.create_model(self.model, pretrained=None if path is None else str(path), **options)
        whole.visual.output_tokens = True
        whole.visual.proj = None
        return whole.visual

    def build(self, side):
        path = None if self.weights == "random" else self.find()
        if path is not None:
            read_weights(path, "OpenCLIPEncoder")  # refuses what may run code, before open_clip opens it
        try:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return self.tower(side, path)
        except Exception as error:  # other keys or shapes
            raise UserError(f"OpenCLIPEncoder: {path} does not fit {self.model!r}: {first_line(error)}") from error

    def layers(self, network):
        return network.transformer.resblocks, network.ln_post

    def tokens(self, network, images):
        cls, patches = network(images)
        return patches, cls
