"""CLIP's text tower (arXiv:2103.00020), through open_clip.

Must match `last_hidden_state` of openai/clip-vit-large-patch14 as REPA's text-to-image setting uses
it: [77, 768], after the final LayerNorm, before the projection. That model's tokenizer fills short
prompts with the end token (open_clip's with zeros), so the end token fills them here.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import TEXT_ENCODERS, ConfigError, UserError, nearest
from ..registry.contracts import TextCond, TextEncoder
from ..registry.hub import hub_file
from ..registry.precision import dtype_of, full_precision

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz")


@TEXT_ENCODERS.register_module()
class CLIPTextEncoder(TextEncoder):
    """CLIP's text tower. Its weights are read when they are first needed.

    Args:
        model: open_clip's name of the model, such as 'ViT-L-14'.
        pretrained: open_clip's tag of the weights, such as 'openai', or a file that it can read.
        quick_gelu: Whether the weights were trained with QuickGELU. A tag implies it; a file does
            not (True for OpenAI's weights, False for LAION's).
        precision: Precision of weights and computation: 'fp32', 'bf16' or 'fp16'.

    Raises:
        ConfigError: If the model, the tag or the precision is unknown.
    """

    place: Tensor

    def __init__(
        self,
        *,
        model: str = "ViT-L-14",
        pretrained: str = "openai",
        quick_gelu: bool | None = None,
        precision: str = "fp32",
    ) -> None:
        import open_clip

        super().__init__()
        dtype = dtype_of("precision", precision)
        config = open_clip.get_model_config(model)
        if config is None:
            known = nearest(model, open_clip.list_models())
            raise ConfigError(f"model: open_clip has no {model!r}{known}")
        text = config.get("text_cfg", {})
        if config.get("custom_text") or "hf_model_name" in text:
            raise ConfigError(
                f"model: the text tower of {model!r} is not CLIP's own; choose one such as "
                "'ViT-L-14'."
            )
        self.model = model
        self.pretrained = str(pretrained)
        self.quick_gelu = self._activation(config, quick_gelu)
        self.length = text.get("context_length", 77)
        self.width = text.get("width", 512)
        self.pooled_dim = config["embed_dim"]
        self.tokenizer = open_clip.get_tokenizer(model, context_length=self.length)
        self.clip: nn.Module | None = None
        # Follows `.to()`: gives the device and dtype of weights that are loaded later.
        place = torch.empty(0, dtype=dtype, device="cpu")
        self.register_buffer("place", place, persistent=False)

    def _activation(self, config: Mapping[str, Any], quick_gelu: bool | None) -> bool:
        """Return whether to build the network with QuickGELU. Also checks the tag."""
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(self.model)
        default = bool(config.get("quick_gelu", False))
        if self.pretrained in tags:
            tagged = open_clip.get_pretrained_cfg(self.model, self.pretrained)
            trained = bool(tagged.get("quick_gelu", False))
            if quick_gelu is not None and quick_gelu != trained:
                raise ConfigError(
                    f"quick_gelu: the weights {self.pretrained!r} were trained with "
                    f"quick_gelu={trained}."
                )
            return trained
        if not (self.pretrained.endswith(FILES) or os.path.exists(self.pretrained)):
            known = nearest(self.pretrained, tags)
            raise ConfigError(
                f"pretrained: {self.model} has no tag {self.pretrained!r}{known} "
                f"Files ({', '.join(FILES)}) are accepted too."
            )
        if quick_gelu is None and not default:
            raise ConfigError(
                "quick_gelu: a file of weights does not tell its activation: give True for "
                "OpenAI's weights, False for LAION's."
            )
        return default if quick_gelu is None else bool(quick_gelu)

    def load(self) -> None:
        """Read the weights if that has not happened yet.

        Raises:
            UserError: If they cannot be found or read; says where it looked and what to do.
        """
        if self.clip is not None:
            return
        import open_clip

        if self.pretrained.endswith(FILES) and not os.path.isfile(self.pretrained):
            raise UserError(f"there are no CLIP weights at {self.pretrained}.")
        weights = self._find_weights()
        try:
            clip = open_clip.create_model(
                self.model,
                device="cpu",
                pretrained=weights,
                force_quick_gelu=self.quick_gelu,
                require_pretrained=True,
            )
        except Exception as error:  # open_clip passes on whatever a hub, file or network raises
            raise UserError(
                f"the CLIP weights {self.model} / {self.pretrained} cannot be read "
                f"({type(error).__name__}: {str(error)[:300]}). On a machine with network access, "
                f"open_clip.create_model({self.model!r}, pretrained={self.pretrained!r}) stores "
                "them in the hub's cache; or save that model's state_dict() to a file and give "
                f"it as pretrained=FILE with quick_gelu={self.quick_gelu}; or try --demo."
            ) from error
        del clip.visual
        clip = clip.to(device=self.place.device, dtype=self.place.dtype)
        self.clip = clip.eval().requires_grad_(False)

    def _find_weights(self) -> str:
        """Return the file of weights: of a tag from the local cache or the hub, or as given."""
        import open_clip

        known = open_clip.get_pretrained_cfg(self.model, self.pretrained)
        if not known:
            return self.pretrained
        hint = (
            "Save its state_dict() to a file on a machine with network access and give it as "
            f"pretrained=FILE with quick_gelu={self.quick_gelu}, or try --demo."
        )
        repository = known["hf_hub"].rstrip("/")
        return str(hub_file(repository, HUB_FILES, what="the CLIP text encoder", hint=hint))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Tokenize B prompts to [B, length] long on the CPU: start, the prompt, end tokens.

        A prompt that is too long is cut.
        """
        found = self.tokenizer(list(prompts))
        end = self.tokenizer.eot_token_id
        from_first_end = (found == end).cumsum(1) > 0
        return found.masked_fill(from_first_end, end)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextCond:
        """Encode B prompts.

        Returns:
            Tokens [B, length, width] after the final LayerNorm; pooled [B, pooled_dim], the
            projected state at the first end token, not normalised (as SD3 takes it).
        """
        self.load()
        clip: Any = self.clip
        states: list[Tensor] = []
        hook = clip.ln_final.register_forward_hook(lambda _, inputs, out: states.append(out))
        try:
            with full_precision(self.place.device):
                pooled = clip.encode_text(self.tokens(prompts).to(self.place.device))
        finally:
            hook.remove()
        return TextCond(states[0].float(), pooled.float())
