"""AHPA's prior (section 4.1): levels of a frozen VAE encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import PRIORS, TOKENIZERS, ConfigError, UserError, build
from ..registry.contracts import Clean, CleanPrior, Features, Geometry, Tokenizer
from ..registry.precision import dtype_of
from ..registry.validation import choice


@PRIORS.register_module()
class VAETaps(CleanPrior):
    """Levels of an autoencoder's encoder, of the tokenizer's own pass or of another autoencoder.

    Without `autoencoder` it reads the levels that the tokenizer's encoder pass yields alongside
    the latents, at no extra cost. With one, that encoder runs only as deep as needed.

    Args:
        geometry: The model's sizes; its `tokenizer_levels` are the levels without `autoencoder`.
        autoencoder: Config of a tokenizer that supervises instead of the model's own.
        precision: Precision of `autoencoder`, unless its config names one.

    Raises:
        ConfigError: If the tokenizer, or the autoencoder, has no levels.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        autoencoder: Mapping[str, Any] | Tokenizer | None = None,
        precision: str = "bf16",
    ) -> None:
        super().__init__(geometry=geometry)
        dtype_of("precision", precision)
        self.autoencoder: Tokenizer | None = None
        if autoencoder is None:
            levels = geometry.tokenizer_levels
            owner = "tokenizer"
        else:
            if isinstance(autoencoder, Mapping):
                autoencoder = {"precision": precision, **autoencoder}
            self.autoencoder = build(TOKENIZERS, autoencoder, where="autoencoder")
            levels = self.autoencoder.levels
            owner = f"autoencoder {type(self.autoencoder).__name__}"
        if not levels:
            raise ConfigError(
                f"VAETaps: the {owner} has no levels; give VAETaps an `autoencoder` that has some."
            )
        self.levels = dict(levels)

    def load(self) -> None:
        """Read the weights of its own autoencoder, if it has one."""
        if self.autoencoder is not None:
            self.autoencoder.load()

    def tokenizer_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """List the levels that the tokenizer's own pass has to yield, shallow -> deep."""
        return self._in_order(levels) if self.autoencoder is None else ()

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return {level: [B, C, h, w]} without gradient.

        Raises:
            ConfigError: If a level is unknown.
            UserError: If the batch has neither the levels nor images to compute them from.
        """
        wanted = self._in_order(levels)
        if self.autoencoder is None and all(name in clean.levels for name in wanted):
            return {name: clean.levels[name] for name in wanted}
        if self.autoencoder is None or clean.images is None:
            raise UserError(
                f"VAETaps: the batch has neither images nor the levels {', '.join(wanted)}; train "
                "on images, or on latents stored with these features."
            )
        return self.autoencoder.encode(clean.images, wanted, latent=False).levels

    def _in_order(self, levels: Sequence[str]) -> tuple[str, ...]:
        for name in levels:
            choice("VAETaps: level", name, tuple(self.levels))
        return tuple(name for name in self.levels if name in levels)
