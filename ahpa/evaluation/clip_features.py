"""open_clip's models as feature extractors: the image embedding, the score of image and text."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import EXTRACTORS, ConfigError, UserError, nearest
from ..registry.hub import hub_file
from ..registry.precision import full_precision
from ..registry.validation import integer
from ..registry.vision_files import HINT, OPEN_CLIP_FILES, first_line, weights_file
from ..registry.weight_files import read_contents, read_state_dict
from .extractors import NetworkExtractor, file_of_variable, resized

RANDOM = "random"


class OpenClipNetwork(NetworkExtractor):
    """Base of the extractors that hold a model of open_clip.

    Images are resized as PIL does (bicubic, antialias, 8 bits) and normalised by the mean and std
    of the pretrained tag, or OpenAI's.

    Args:
        model: open_clip's name of the architecture. Weights from a file that were trained with
            QuickGELU need a name that ends in "-quickgelu".
        weights: A pretrained tag of open_clip; a file or folder; or "random".
        seed: Seed of random weights.
        changes: Changes of the architecture's config, such as dict(embed_dim=32,
            vision_cfg=dict(layers=2)).

    Raises:
        ConfigError: If open_clip has no such architecture.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        model: str,
        weights: str,
        seed: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        import open_clip
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        super().__init__()
        config = open_clip.get_model_config(model)
        if config is None:
            raise ConfigError(
                f"model: open_clip has no {model!r}{nearest(model, open_clip.list_models())}"
            )
        self.model = model
        self.weights = weights
        self.seed = integer("seed", seed)
        self.changes: dict[str, Any] = {}
        for key, value in (changes or {}).items():
            whole = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
            self.changes[key] = config[key] = whole
        self.tag = open_clip.get_pretrained_cfg(model, weights) or {}  # empty if it is not a tag
        self.embed_dim = int(config["embed_dim"])
        side = config["vision_cfg"]["image_size"]
        self.side = int(side if isinstance(side, int) else side[0])
        self.context = int(config.get("text_cfg", {}).get("context_length", 77))
        colours = (
            ("mean", self.tag.get("mean") or OPENAI_DATASET_MEAN),
            ("std", self.tag.get("std") or OPENAI_DATASET_STD),
        )
        for name, values in colours:
            value = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def what(self) -> str:
        """Its name for messages."""
        return f"feature extractor {self.model!r}"

    def weight_file(self) -> Path | None:
        """Return the file of the weights; None for random ones."""
        if self.weights == RANDOM:
            return None
        if not self.tag:
            return weights_file(self.weights, self.what)
        name = f"{self.model}_{self.weights}"
        found = file_of_variable([f"{name}.safetensors", f"{name}.bin", name])
        if found is not None:
            return weights_file(str(found), self.what)
        repository = self.tag["hf_hub"].rstrip("/")
        return hub_file(repository, OPEN_CLIP_FILES, what="the CLIP model", hint=HINT)

    def build(self, path: Path | None) -> nn.Module:
        """Build the whole model on the CPU."""
        if path is not None:
            read_contents(path, self.what)  # refuse unsafe files before open_clip opens it
        try:
            return self.create(None if path is None else str(path))
        except Exception as error:  # other names or shapes
            raise UserError(
                f"{self.what}: {path} does not fit {self.model!r}: {first_line(error)}"
            ) from error

    def create(self, pretrained: str | None) -> nn.Module:
        """Call open_clip, with weights from a file or random ones."""
        import open_clip

        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return open_clip.create_model(
                self.model,
                pretrained=pretrained,
                device="cpu",
                force_quick_gelu=bool(self.tag.get("quick_gelu")),
                **self.changes,
            )

    def embed_images(self, images: Tensor) -> Tensor:
        """Return the image embeddings [B, E], not normalised."""
        pixels = (resized(images, self.side) / 255 - self.mean) / self.std
        return self.network.encode_image(pixels).float()

    def description(self) -> dict[str, Any]:
        """Return the network and its preprocessing."""
        return {
            "network": f"open_clip {self.model}",
            "changes": dict(self.changes),
            "quick_gelu": bool(self.tag.get("quick_gelu")) or self.model.endswith("-quickgelu"),
            "seed": self.seed if self.weights == RANDOM else None,
            "side": self.side,
            "resize": "bicubic, antialias, 8 bits",
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
        }


@EXTRACTORS.register_module(name="open-clip")
class OpenClipFeatures(OpenClipNetwork):
    """The image embedding of a model of open_clip, such as CLIP ViT-L/14: output "image".

    Args:
        model: open_clip's name of the architecture.
        weights: A pretrained tag of open_clip; a file or folder; or "random".
        seed: Seed of random weights.
        changes: Changes of the architecture's config.
    """

    def __init__(
        self,
        *,
        model: str = "ViT-L-14",
        weights: str = "openai",
        seed: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model=model, weights=weights, seed=seed, changes=changes)
        self.outputs = {"image": self.embed_dim}

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the embeddings of images, uint8 [B, 3, H, W]; they are not normalised."""
        self.load()
        with full_precision(images.device):
            return {"image": self.embed_images(images)}


@EXTRACTORS.register_module(name="open-clip-score")
class OpenClipScore(OpenClipNetwork):
    """The cosine of an image's embedding and its prompt's, by a model of open_clip: output "score".

    Args:
        model: open_clip's name of the architecture.
        weights: A pretrained tag of open_clip; a file or folder; or "random".
        prefix: Text before each prompt; Hessel et al. use "A photo depicts ".
        seed: Seed of random weights.
        changes: Changes of the architecture's config.
    """

    outputs = {"score": 1}
    takes_prompts = True

    def __init__(
        self,
        *,
        model: str = "ViT-L-14",
        weights: str = "openai",
        prefix: str = "",
        seed: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model=model, weights=weights, seed=seed, changes=changes)
        self.prefix = prefix
        self.tokenizer: Any = None

    def load(self) -> None:
        """Read the weights and the tokenizer. Raises UserError if they are missing."""
        super().load()
        if self.tokenizer is None:
            import open_clip

            try:
                self.tokenizer = open_clip.get_tokenizer(self.model, context_length=self.context)
            except Exception as error:  # some tokenizers are files of the hub
                raise UserError(
                    f"{self.what}: its tokenizer cannot be read: {first_line(error)}"
                ) from error

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine of each image with its prompt [B, 1]."""
        tokens = self.tokenizer([self.prefix + prompt for prompt in prompts]).to(images.device)
        with full_precision(images.device):
            pictures = F.normalize(self.embed_images(images), dim=1)
            texts = F.normalize(self.network.encode_text(tokens).float(), dim=1)
        return (pictures * texts).sum(1, keepdim=True)

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compare images, uint8 [B, 3, H, W], with their prompts."""
        self.load()
        if prompts is None or len(prompts) != len(images):
            raise ValueError("the score needs one prompt for each image.")
        return {"score": self.cosines(images, prompts)}

    def description(self) -> dict[str, Any]:
        """Return the network, its preprocessing and the prefix."""
        return {**super().description(), "prefix": self.prefix}


PICKSCORE = "yuvalkirstain/PickScore_v1"
RENAMED = (  # names in transformers' CLIPModel -> in open_clip's
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"text_projection\.weight", "text_projection"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
)
TRANSPOSED = ("text_projection", "visual.proj")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' CLIPModel to open_clip's.

    Queries, keys and values are stacked in this order, and projections are transposed.

    Args:
        state: The state dict of a `transformers.CLIPModel`.

    Raises:
        KeyError: If a query has no key or value.
    """
    found = {}
    for name, value in state.items():
        if name.endswith("position_ids") or ".self_attn.k_proj." in name:
            continue
        if ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            value = torch.cat(parts)
            name = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        found[name] = value.T if name in TRANSPOSED else value
    return found


@EXTRACTORS.register_module(name="pickscore")
class PickScoreNetwork(OpenClipScore):
    """PickScore v1 (arXiv:2305.01569), a CLIP ViT-H/14 trained on people's choices: output "score",
    the cosine of image and prompt times the model's temperature.

    Args:
        weights: None for the published weights, from AHPA_WEIGHTS (PickScore_v1.safetensors), the
            hub's cache or the hub; a file of transformers' CLIPModel, or a folder with its
            model.safetensors; or "random".
        seed: Seed of random weights.
        changes: Changes of the architecture's config.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        seed: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model="ViT-H-14", weights=weights or "", seed=seed, changes=changes)

    def weight_file(self) -> Path | None:
        """Return the file of the weights; None for random ones."""
        if self.weights:
            return None if self.weights == RANDOM else weights_file(self.weights, "pickscore")
        found = file_of_variable(["PickScore_v1.safetensors", "PickScore_v1"])
        if found is not None:
            return weights_file(str(found), "pickscore")
        names = ("model.safetensors", "pytorch_model.bin")
        hint = (
            f"Fetch one of {', '.join(names)} of https://huggingface.co/{PICKSCORE} on a machine "
            "with a network and put it into the folder PickScore_v1 of the folder that the "
            "environment variable AHPA_WEIGHTS names, or give the extractor's option `weights` "
            "its path."
        )
        return hub_file(PICKSCORE, names, what="PickScore's network", hint=hint)

    def build(self, path: Path | None) -> nn.Module:
        """Build the model on the CPU, with transformers' weights renamed."""
        network = self.create(None)
        if path is not None:
            try:
                network.load_state_dict(from_transformers(read_state_dict(path, "pickscore")))
            except (KeyError, RuntimeError) as error:
                raise UserError(
                    f"pickscore: {path} does not hold the weights of PickScore's CLIP ViT-H/14: "
                    f"{first_line(error)}"
                ) from error
        return network

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compare images, uint8 [B, 3, H, W], with their prompts."""
        cosines = super().forward(images, prompts)["score"]
        return {"score": self.network.logit_scale.exp() * cosines}
