"""`TAEF2Taps`, a prior for ahpa: the target of an alignment is made of levels of TAEF2's encoder.

What ahpa asks of a prior stands in `ahpa.registry.contracts.Prior`, in the order of its calls: `bind`, `spec`, `request`,
then `forward` each step. (ahpa's own `VAETaps` reads any autoencoder that has levels, this one too; here is the protocol
written out.)
"""

from collections.abc import Sequence

from ahpa.registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build, nearest
from ahpa.registry.contracts import Features, LevelSpec, Prior, Step

from .autoencoder import TAEF2


@PRIORS.register_module()
class TAEF2Taps(Prior):
    """Levels of TAEF2's encoder: from the tokenizer's own pass when that is a TAEF2, else from an encoder of its own.

    encoder: path of taef2_encoder.safetensors; needed where the tokenizer is another autoencoder. Given, it is used in
    any case.
    """

    def __init__(self, *, encoder: str | None = None):
        super().__init__()
        self.source = None  # a plain attribute where it is the tokenizer: that is the model's, and moves with it
        self.own = None if encoder is None else build(AUTOENCODERS, dict(type="TAEF2", encoder=encoder))
        self.requested: tuple[str, ...] = ()

    def bind(self, *, tokenizer, backbone) -> None:
        """ConfigError where neither the tokenizer nor an own encoder is a TAEF2."""
        if self.own is None and not isinstance(tokenizer, TAEF2):
            raise ConfigError(f"TAEF2Taps: the tokenizer is a {type(tokenizer).__name__}, whose levels are not TAEF2's; "
                              "give `encoder`, the path of taef2_encoder.safetensors.")  # fmt: skip
        self.__dict__["source"] = self.own or tokenizer

    def load(self) -> None:
        """Reads the weights of its own encoder, if it has one."""
        if self.own is not None:
            self.own.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        """Known without weights: {level: (64 channels, pixels per feature)}."""
        return dict(TAEF2.levels)

    def request(self, levels: Sequence[str]) -> None:
        """The levels that the routers read. ConfigError for one that TAEF2 does not have."""
        for name in levels:
            if name not in TAEF2.levels:
                raise ConfigError(f"TAEF2Taps: there is no level {name!r}{nearest(name, TAEF2.levels)}")
        self.requested = tuple(name for name in TAEF2.levels if name in set(levels))

    @property
    def shared_levels(self) -> tuple[str, ...]:
        """What the tokenizer's pass shall yield for this prior: ahpa puts it into `step.encoded.taps`."""
        return () if self.own is not None else self.requested

    def forward(self, step: Step) -> Features:
        """-> {level: [B, 64, h, w]} without gradient. UserError for latents without images to read levels from."""
        done = step.encoded.taps if self.own is None and step.encoded is not None else {}
        if self.own is None and all(name in done for name in self.requested):
            return {name: done[name] for name in self.requested}
        if step.images is None:
            raise UserError("TAEF2Taps: the batch has latents and no images; store the levels with the latents (as "
                            f"features) or train on images. Levels: {', '.join(self.requested)}.")  # fmt: skip
        return self.source.encode(step.images, self.requested, latent=False).taps
