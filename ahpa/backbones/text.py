"""Conditions from text: captions through a frozen encoder, a share of which is replaced by the empty prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import CONDITIONERS, TEXT_ENCODERS, UserError, build
from ..registry.contracts import Conditioner, Step, TextCond

NULL = ""  # the empty prompt, whose features stand in for dropped text (REPA's text-to-image setting)
PROMPTS = (
    "a yellow star on a dark ground", "a pink heart on a light ground", "a blue ring on a dark ground",
    "a purple moon on a light ground", "a teal cross on a dark ground", "a pink flower on a light ground",
    "a blue fish on a dark ground", "a green tree on a light ground", "an orange house on a dark ground",
    "a red mushroom on a light ground",
)  # fmt: skip


@CONDITIONERS.register_module()
class TextConditioner(Conditioner):
    """Captions as an encoder's tokens; with probability `dropout` in training those of the empty prompt (0.1: REPA).

    encoder: CLIPTextEncoder if not given; prompts: what is drawn when no prompt is asked for (sample grids), by default
    ten of the drawn set's captions. A pooled vector goes with the tokens where the backbone has a `pooled_dim`. The draw
    comes from the step's generator, once and before the backbone, so that a teacher shares it. ValueError for a backbone
    that takes no text, or text of another width.
    """

    takes = "prompts"
    demo = dict(encoder=dict(type="WordEncoder"), prompts=PROMPTS)

    def __init__(self, *, backbone, encoder: Mapping | Any = None, dropout: float = 0.1,
                 prompts: Sequence[str] = PROMPTS):  # fmt: skip
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: must be in [0, 1], got {dropout}.")
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts: must be a list of one or more strings, got {prompts!r}.")
        if getattr(backbone, "text_dim", None) is None:
            raise ValueError(f"TextConditioner: a {type(backbone).__name__} takes no text; use ClassLabels, or MMDiT.")
        encoder = build(TEXT_ENCODERS, encoder or dict(type="CLIPTextEncoder"), where="encoder")
        for option, own in (("text_dim", encoder.width), ("pooled_dim", encoder.pooled_dim)):
            wanted = getattr(backbone, option, None)
            if wanted is not None and wanted != own:
                raise ValueError(f"encoder: a {type(encoder).__name__} gives {own} channels, the backbone's {option} is "
                                 f"{wanted}; set model.backbone.{option}={own}.")  # fmt: skip
        self.dropout, self.prompts = dropout, list(prompts)
        self.pooled = getattr(backbone, "pooled_dim", None) is not None
        self.hold(encoder=encoder)

    def load(self) -> None:
        """Reads the encoder's weights now. UserError if they are not there."""
        self.held["encoder"].load()

    def _encode(self, prompts: Sequence[str]) -> TextCond:
        tokens, pooled = self.held["encoder"](prompts)
        return TextCond(tokens, pooled if self.pooled else None)

    def forward(self, step: Step) -> TextCond:
        """step.batch['caption'] (B strings) -> tokens [B, T, W] (and pooled [B, P]), some of the empty prompt.
        UserError where the batch has no captions."""
        captions = step.batch.get("caption")
        if captions is None:
            raise UserError("the data set gives no captions, which TextConditioner needs: use CocoCaptions or the drawn "
                            "set, or a backbone of classes.")  # fmt: skip
        encoded = self._encode([*captions, NULL])  # the last one is the null condition
        drop = self._drop(len(captions), step.generator, encoded.tokens.device)
        parts = [
            None if part is None else torch.where(drop.view(-1, *[1] * (part.ndim - 1)), part[-1:], part[:-1])
            for part in encoded
        ]
        return TextCond(*parts)

    def _drop(self, count: int, generator: torch.Generator | None, device) -> Tensor:
        """[B] bool: whose caption is replaced."""
        return torch.rand(count, generator=generator, device=device) < self.dropout

    def null(self, count: int, device) -> TextCond:
        """The empty prompt's condition for `count` samples."""
        parts = self._encode([NULL])
        return TextCond(*(None if p is None else p.to(device).expand(count, *p.shape[1:]) for p in parts))

    def all(self) -> list[str]:
        """The configured prompts."""
        return list(self.prompts)

    def encode(self, prompts: Sequence[str], device) -> TextCond:
        """The conditions of samples, one a prompt. UserError for what is no string."""
        wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if wrong:
            raise UserError(f"prompts: this model takes texts, got {wrong[0]!r}; give strings such as {PROMPTS[0]!r}.")
        return TextCond(*(None if part is None else part.to(device) for part in self._encode(prompts)))

    def example(self, count: int, generator: torch.Generator) -> dict[str, list[str]]:
        """Captions: random ones of the prompts."""
        chosen = torch.randint(0, len(self.prompts), (count,), generator=generator)
        return {"caption": [self.prompts[i] for i in chosen.tolist()]}
