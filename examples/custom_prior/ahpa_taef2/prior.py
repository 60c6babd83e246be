"""`TAEF2Taps`, a prior for ahpa: the target of an alignment is made of levels of TAEF2's encoder.

What ahpa expects of a prior is in `ahpa.registry.contracts.Prior`. (ahpa's own `VAETaps` reads any
tokenizer that has levels, this one too; here the contract is written out.)
"""

from collections.abc import Sequence

from ahpa.registry import PRIORS, ConfigError, UserError
from ahpa.registry.contracts import Clean, CleanPrior, Features, Geometry

from .tokenizer import TAEF2


@PRIORS.register_module()
class TAEF2Taps(CleanPrior):
    """Levels of TAEF2's encoder, of the tokenizer's own pass or of an encoder of its own.

    Args:
        geometry: The model's sizes; passed by ahpa.
        encoder: Path of taef2_encoder.safetensors; needed if the tokenizer is not a TAEF2.

    Raises:
        ConfigError: If there is no `encoder` and the tokenizer is not a TAEF2.
    """

    def __init__(self, *, geometry: Geometry, encoder: str | None = None) -> None:
        super().__init__(geometry=geometry)
        self.levels = dict(TAEF2.levels)
        self.own = None if encoder is None else TAEF2(encoder=encoder)
        if self.own is None and dict(geometry.tokenizer_levels) != self.levels:
            raise ConfigError(
                "TAEF2Taps: the tokenizer is not a TAEF2, so its levels are not TAEF2's; give "
                "`encoder`, the path of taef2_encoder.safetensors."
            )

    def load(self) -> None:
        """Read the weights of its own encoder, if it has one."""
        if self.own is not None:
            self.own.load()

    def tokenizer_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """List the levels that the tokenizer's pass has to yield: they come in `clean.levels`."""
        return tuple(levels) if self.own is None else ()

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return {level: [B, 64, h, w]}, shallow -> deep.

        Raises:
            UserError: If the batch has latents alone, without levels or images.
        """
        wanted = [name for name in self.levels if name in levels]
        if self.own is None and all(name in clean.levels for name in wanted):
            return {name: clean.levels[name] for name in wanted}
        if self.own is None or clean.images is None:
            raise UserError(
                "TAEF2Taps: the batch has latents and no images; store the levels with the latents "
                f"(as features) or train on images. Levels: {', '.join(wanted)}."
            )
        return self.own.encode(clean.images, wanted, latent=False).levels
