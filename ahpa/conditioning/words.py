"""A text encoder without weights: each word is a fixed random vector, so that text-conditioned
models run on a machine without downloads."""

import functools
import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import TEXT_ENCODERS, ConfigError
from ..registry.contracts import TextCond, TextEncoder
from ..registry.positions import sincos_1d
from ..registry.validation import integer

END = "<end>"  # follows the last word and fills the remaining tokens
SEED = 0x7E87


@functools.lru_cache(maxsize=4096)
def word_vector(word: str, width: int) -> Tensor:
    """Return [width] standard normals that depend on the word alone."""
    stream = torch.Generator(device="cpu").manual_seed(zlib.crc32(word.encode()) ^ SEED)
    return torch.randn(width, generator=stream, device="cpu")


@TEXT_ENCODERS.register_module()
class WordEncoder(TextEncoder):
    """Words as fixed random vectors plus their position, for demonstrations and tests.

    Words are runs of letters and digits, in lower case. Nothing is learned or loaded, and similar
    words are not encoded similarly.

    Args:
        length: Number of tokens T; longer prompts are cut, shorter ones filled with an end mark.
        width: Width of a token and of the pooled vector, the mean over words and end mark; even.

    Raises:
        ConfigError: If `length` or `width` is below 2, or if `width` is odd.
    """

    place: Tensor

    def __init__(self, *, length: int = 16, width: int = 768) -> None:
        super().__init__()
        self.length = integer("length", length, least=2)
        self.width = integer("width", width, least=2)
        if width % 2:
            raise ConfigError(f"width: must be even, got {width}.")
        self.pooled_dim = width
        # Follows `.to()`, so that the output is on the module's device.
        self.register_buffer("place", torch.empty(0, device="cpu"), persistent=False)

    def words(self, prompt: str) -> list[str]:
        """Return the words that are encoded, at most `length` with the end mark."""
        found = re.findall(r"[^\W_]+", prompt.lower())
        return [*found[: self.length - 1], END]

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextCond:
        """Encode B prompts to tokens [B, length, width] and pooled vectors [B, width]."""
        tokens = torch.empty(len(prompts), self.length, self.width, device="cpu")
        pooled = torch.empty(len(prompts), self.width, device="cpu")
        for row, prompt in enumerate(prompts):
            words = self.words(prompt)
            filled = words + [END] * (self.length - len(words))
            tokens[row] = torch.stack([word_vector(word, self.width) for word in filled])
            pooled[row] = tokens[row, : len(words)].mean(0)
        position = torch.arange(self.length, device="cpu")
        tokens += sincos_1d(self.width, position).float()
        return TextCond(tokens.to(self.place.device), pooled.to(self.place.device))
