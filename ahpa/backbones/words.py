"""A text encoder without weights: each word is a fixed random vector, so that the text path runs on a bare machine."""

import functools
import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import TEXT_ENCODERS
from ..registry.contracts import TextCond, TextEncoder
from .layers import sincos_1d

END = "<end>"  # follows the last word, and fills the rest
SEED = 0x7E87


@functools.lru_cache(maxsize=4096)
def word_vector(word: str, width: int) -> Tensor:
    """[width] standard normals, a function of the word alone."""
    stream = torch.Generator(device="cpu").manual_seed(zlib.crc32(word.encode()) ^ SEED)
    return torch.randn(width, generator=stream, device="cpu")


@TEXT_ENCODERS.register_module()
class WordEncoder(TextEncoder):
    """Words (letters and digits, in lower case) to fixed random vectors plus their place; nothing is learned or loaded.

    length: tokens, of which further words are cut and missing ones are an end mark; width: of a token and of the
    pooled vector, the mean over words and end mark. It knows no likeness of words: for demonstrations and tests.
    """

    def __init__(self, *, length: int = 16, width: int = 768):
        super().__init__()
        for name, value, least in (("length", length, 2), ("width", width, 2)):
            if value != int(value) or value < least or (name == "width" and value % 2):
                even = "an even" if name == "width" else "a"
                raise ValueError(f"{name}: must be {even} whole number of at least {least}, got {value!r}.")
        self.length, self.width, self.pooled_dim = int(length), int(width), int(width)
        self.register_buffer("place", torch.empty(0, device="cpu"), persistent=False)  # follows `.to()`

    def words(self, prompt: str) -> list[str]:
        """The words that are encoded, with the end mark: at most `length`."""
        return [*re.findall(r"[^\W_]+", prompt.lower())[: self.length - 1], END]

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextCond:
        """B prompts -> tokens [B, length, width], pooled [B, width]."""
        tokens = torch.empty(len(prompts), self.length, self.width, device="cpu")
        pooled = torch.empty(len(prompts), self.width, device="cpu")
        for row, prompt in enumerate(prompts):
            words = self.words(prompt)
            filled = words + [END] * (self.length - len(words))
            tokens[row] = torch.stack([word_vector(word, self.width) for word in filled])
            pooled[row] = tokens[row, : len(words)].mean(0)
        tokens += sincos_1d(self.width, torch.arange(self.length, device="cpu")).float()
        return TextCond(tokens.to(self.place.device), pooled.to(self.place.device))
