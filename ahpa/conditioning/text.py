"""Text as the condition: captions through a frozen encoder; in training some are replaced by the
empty prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import CONDITIONERS, TEXT_ENCODERS, ConfigError, UserError, build
from ..registry.contracts import Clean, Condition, Conditioner, Geometry, TextCond, TextEncoder
from ..registry.validation import probability

NULL = ""  # the empty prompt stands in for dropped text (REPA's text-to-image setting)
PROMPTS = (
    "a yellow star on a dark ground",
    "a pink heart on a light ground",
    "a blue ring on a dark ground",
    "a purple moon on a light ground",
    "a teal cross on a dark ground",
    "a pink flower on a light ground",
    "a blue fish on a dark ground",
    "a green tree on a light ground",
    "an orange house on a dark ground",
    "a red mushroom on a light ground",
)


def replace_rows(value: Tensor, rows: Tensor, other: Tensor) -> Tensor:
    """Return `value` [B, ...] with the rows marked in `rows` [B] replaced by `other` [1, ...]."""
    mask = rows.view(-1, *[1] * (value.ndim - 1))
    return torch.where(mask, other, value)


@CONDITIONERS.register_module()
class TextConditioner(Conditioner):
    """Captions as a frozen encoder's tokens, and its pooled vector if the backbone takes one.

    Captions are dropped once for a step, before the backbone and from the step's generator, so
    that a teacher shares the dropout.

    Args:
        geometry: Sizes of the model.
        encoder: Config of the text encoder, or a built one; CLIPTextEncoder by default.
        dropout: Probability of replacing a caption by the empty prompt in training (0.1 in REPA,
            arXiv:2410.06940).
        prompts: Prompts that are shown when none are asked for; by default ten captions of the
            synthetic data set.

    Raises:
        ConfigError: If the backbone takes no text, or text of another width.
    """

    takes = "prompts"

    def __init__(
        self,
        *,
        geometry: Geometry,
        encoder: Mapping[str, Any] | TextEncoder | None = None,
        dropout: float = 0.1,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        super().__init__(geometry=geometry)
        self.dropout = probability("dropout", dropout)
        self.prompts = _check_prompts(prompts)
        if geometry.text_dim is None:
            raise ConfigError(
                "TextConditioner: the backbone takes no text; use ClassLabels, or a backbone for "
                "text such as MMDiT."
            )
        default = {"type": "CLIPTextEncoder"}
        built = build(TEXT_ENCODERS, encoder or default, where="encoder")
        _check_width(built, "text_dim", given=built.width, taken=geometry.text_dim)
        _check_width(built, "pooled_dim", given=built.pooled_dim, taken=geometry.pooled_dim)
        self.takes_pooled = geometry.pooled_dim is not None
        self.encoder: TextEncoder = built.eval().requires_grad_(False)

    def load(self) -> None:
        """Read the encoder's weights. Raises UserError if they are missing."""
        self.encoder.load()

    def forward(self, clean: Clean, rng: torch.Generator | None) -> Condition:
        """Return the encoded captions, some of which are replaced by the empty prompt.

        Raises:
            UserError: If the batch has no captions.
        """
        if clean.captions is None:
            raise UserError(
                "TextConditioner: the data set gives no captions; use CocoCaptions or the "
                "synthetic set, or a backbone that takes class labels."
            )
        captions = list(clean.captions)
        encoded = self._encode([*captions, NULL])  # the last row is the null condition
        tokens, pooled = encoded
        device = tokens.device
        dropped = torch.rand(len(captions), generator=rng, device=device) < self.dropout
        tokens = replace_rows(tokens[:-1], dropped, tokens[-1:])
        if pooled is not None:
            pooled = replace_rows(pooled[:-1], dropped, pooled[-1:])
        return Condition(TextCond(tokens, pooled), dropped)

    def _encode(self, prompts: Sequence[str]) -> TextCond:
        tokens, pooled = self.encoder(prompts)
        return TextCond(tokens, pooled if self.takes_pooled else None)

    def null(self, count: int, device: torch.device | str) -> TextCond:
        """Return the empty prompt's condition for `count` samples."""
        tokens, pooled = self._on(device, self._encode([NULL]))
        tokens = tokens.expand(count, *tokens.shape[1:])
        if pooled is not None:
            pooled = pooled.expand(count, *pooled.shape[1:])
        return TextCond(tokens, pooled)

    def all(self) -> list[Any]:
        """List the configured prompts."""
        return list(self.prompts)

    def encode(self, wanted: Sequence[Any], device: torch.device | str) -> TextCond:
        """Encode prompts. Raises UserError for anything but a string."""
        for prompt in wanted:
            if not isinstance(prompt, str):
                raise UserError(
                    f"prompts: this model takes texts, got {prompt!r}; give strings such as "
                    f"{PROMPTS[0]!r}."
                )
        return self._on(device, self._encode(wanted))

    def _on(self, device: torch.device | str, cond: TextCond) -> TextCond:
        tokens, pooled = cond
        return TextCond(tokens.to(device), None if pooled is None else pooled.to(device))

    def example(self, count: int, rng: torch.Generator) -> dict[str, Any]:
        """Return `count` of the prompts at random, as a synthetic batch's entry 'caption'."""
        chosen = torch.randint(0, len(self.prompts), (count,), generator=rng)
        return {"caption": [self.prompts[i] for i in chosen.tolist()]}


def _check_prompts(prompts: Any) -> list[str]:
    """Return the prompts as a list. Raises ConfigError unless they are one or more strings."""
    listed = list(prompts) if isinstance(prompts, (list, tuple)) else []
    if listed and all(isinstance(prompt, str) for prompt in listed):
        return listed
    raise ConfigError(f"prompts: must be a list of one or more strings, got {prompts!r}.")


def _check_width(encoder: TextEncoder, option: str, *, given: int, taken: int | None) -> None:
    """Raise ConfigError if the encoder's width differs from the one the backbone takes."""
    if taken is not None and taken != given:
        raise ConfigError(
            f"encoder: {type(encoder).__name__} gives {given} channels, but the backbone's "
            f"{option} is {taken}; set model.backbone.{option}={given}."
        )
