"""CLIP's text tower (arXiv:2103.00020) by open_clip: the hidden states that diffusion models are conditioned on.

Must match: `last_hidden_state` of openai/clip-vit-large-patch14 as REPA's text-to-image setting uses it (77 x 768, after
the final LayerNorm, before the projection). That model's tokenizer fills a short prompt with its end token, where
open_clip's fills with zeros; the states behind the end differ by it, so it is filled with the end token here.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import TEXT_ENCODERS, ConfigError, UserError, nearest
from ..registry.contracts import TextCond, TextEncoder
from ..registry.hub import hub_file
from ..registry.numerics import full_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz")


@TEXT_ENCODERS.register_module()
class CLIPTextEncoder(TextEncoder):
    """CLIP's text tower by open_clip's model name and pretrained tag, or a file of weights; loaded when first used.

    model: such as 'ViT-L-14'. pretrained: a tag, such as 'openai', or a file that open_clip reads. quick_gelu: whether
    the weights were trained with it; a tag says so itself, of a file it must be said (OpenAI's: True). precision: of
    weights and computation. ConfigError for a model or tag that there is not, UserError where weights cannot be had.
    """

    def __init__(self, *, model: str = "ViT-L-14", pretrained: str = "openai", quick_gelu: bool | None = None,
                 precision: str = "fp32"):  # fmt: skip
        import open_clip

        super().__init__()
        if precision not in DTYPES:
            raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
        config = open_clip.get_model_config(model)
        if config is None:
            raise ConfigError(f"model: open_clip has no {model!r}{nearest(model, open_clip.list_models())}")
        text = config.get("text_cfg", {})
        if config.get("custom_text") or "hf_model_name" in text:
            raise ConfigError(f"model: the text tower of {model!r} is not CLIP's own; take one such as 'ViT-L-14'.")
        self.model, self.pretrained = model, str(pretrained)
        self.quick_gelu = self._activation(open_clip, config, quick_gelu)
        self.length, self.width = text.get("context_length", 77), text.get("width", 512)
        self.pooled_dim = config["embed_dim"]
        # Follows `.to()`, so that it says where, and as what, the weights are to be once they are loaded.
        self.register_buffer("place", torch.empty(0, dtype=DTYPES[precision], device="cpu"), persistent=False)
        self.tokenizer = open_clip.get_tokenizer(model, context_length=self.length)

    def _activation(self, open_clip, config, quick_gelu) -> bool:
        """Whether the network is to be built with QuickGELU; checks the tag on the way."""
        tags = open_clip.list_pretrained_tags_by_model(self.model)
        if self.pretrained in tags:
            own = bool(open_clip.get_pretrained_cfg(self.model, self.pretrained).get("quick_gelu", False))
            if quick_gelu is not None and quick_gelu != own:
                raise ConfigError(f"quick_gelu: the weights {self.pretrained!r} were trained with quick_gelu={own}.")
            return own
        if not (self.pretrained.endswith(FILES) or os.path.exists(self.pretrained)):
            raise ConfigError(f"pretrained: {self.model} has no tag {self.pretrained!r}{nearest(self.pretrained, tags)}"
                              f" Or a file ({', '.join(FILES)}).")  # fmt: skip
        if quick_gelu is None and not config.get("quick_gelu", False):
            raise ConfigError("quick_gelu: a file of weights does not tell its activation: give True for OpenAI's, "
                              "False for LAION's.")  # fmt: skip
        return bool(config.get("quick_gelu", False) if quick_gelu is None else quick_gelu)

    def load(self) -> None:
        """Reads the weights once. UserError where they are not, with what was looked for and what to do."""
        if "clip" in self.__dict__.get("held", {}):
            return
        import open_clip

        if self.pretrained.endswith(FILES) and not os.path.isfile(self.pretrained):
            raise UserError(f"there are no CLIP weights at {self.pretrained}.")
        options = dict(pretrained=self.find(open_clip), force_quick_gelu=self.quick_gelu, require_pretrained=True)
        try:
            clip = open_clip.create_model(self.model, device="cpu", **options)
        except Exception as error:  # a hub, a file, a network: open_clip lets pass what each of them raises
            raise UserError(
                f"the CLIP weights {self.model} / {self.pretrained} cannot be had ({type(error).__name__}: "
                f"{str(error)[:300]}). On a machine with network, open_clip.create_model({self.model!r}, "
                f"pretrained={self.pretrained!r}) stores them in the hub's cache; or save that model's state_dict() to a "
                f"file and give it as pretrained=FILE with quick_gelu={self.quick_gelu}; or try --demo."
            ) from error
        del clip.visual
        self.hold(clip=clip.to(device=self.place.device, dtype=self.place.dtype))

    def find(self, open_clip) -> str:
        """The weights' file: of a tag from the local cache or the hub, else the file that was given."""
        known = open_clip.get_pretrained_cfg(self.model, self.pretrained)
        if not known:
            return self.pretrained
        hint = ("Save its state_dict() to a file on a machine with network and give that as pretrained=FILE with "
                f"quick_gelu={self.quick_gelu}, or try --demo.")  # fmt: skip
        return str(hub_file(known["hf_hub"].rstrip("/"), HUB_FILES, what="the CLIP text encoder", hint=hint))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, length] long on the CPU: start, the prompt (cut where it is too long), end tokens."""
        found, end = self.tokenizer(list(prompts)), self.tokenizer.eot_token_id
        return found.masked_fill((found == end).cumsum(1) > 0, end)  # from the first end token on

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextCond:
        """B prompts -> tokens [B, length, width], after the final LayerNorm; pooled [B, pooled_dim], the projected state
        at the first end token, not normalised (as SD3 takes it)."""
        self.load()
        clip, seen = self.held["clip"], []
        hook = clip.ln_final.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            with full_precision(self.place.device):
                pooled = clip.encode_text(self.tokens(prompts).to(self.place.device))
        finally:
            hook.remove()
        return TextCond(seen[0].float(), pooled.float())
