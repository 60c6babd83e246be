"""AHPA's prior: levels of a frozen VAE encoder (section 4.1), of the tokenizer's own pass or of another autoencoder."""

from collections.abc import Mapping, Sequence

from ..registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build, check, nearest
from ..registry.contracts import Features, LevelSpec, Prior, Step
from ..registry.registry import parameters
from .autoencoder import DTYPES


@PRIORS.register_module()
class VAETaps(Prior):
    """Levels of an autoencoder's encoder; with none of its own it shares the tokenizer's pass, which costs no more.

    autoencoder: config of another one as the supervisor (computed only as deep as needed), whose precision is
    `precision` unless its config says otherwise. ConfigError where the tokenizer has no levels to share.
    """

    def __init__(self, *, autoencoder=None, precision: str = "bf16"):
        super().__init__()
        if precision not in DTYPES:
            raise ConfigError(f"precision: {precision!r} is unknown{nearest(precision, DTYPES)}")
        self.own = None
        if autoencoder is not None:
            self.own = build(AUTOENCODERS, self._with_precision(autoencoder, precision), where="autoencoder")
        self.levels, self.requested = {}, ()
        if self.own is not None:
            self._take_levels(self.own, "autoencoder")

    @staticmethod
    def _with_precision(autoencoder, precision: str):
        """`precision` as the default of the option, for the autoencoders that have it."""
        if not isinstance(autoencoder, Mapping):
            return autoencoder
        known, _ = parameters(check(AUTOENCODERS, autoencoder, where="autoencoder"))
        return {"precision": precision, **autoencoder} if "precision" in known else autoencoder

    def _take_levels(self, autoencoder, what: str) -> None:
        self.levels = getattr(autoencoder, "levels", {})
        if not self.levels:
            raise ConfigError(f"VAETaps: the {what} {type(autoencoder).__name__} has no levels to share; give VAETaps "
                              "an `autoencoder` that has.")  # fmt: skip

    def bind(self, *, tokenizer, backbone) -> None:
        """Without an autoencoder of its own it reads the tokenizer's levels. ConfigError if that has none."""
        if self.own is None:
            self._take_levels(tokenizer, "tokenizer")
            self.__dict__["tokenizer"] = tokenizer  # not a submodule: it is the model's, and moves with that

    def load(self) -> None:
        """Reads the weights of its own autoencoder, if it has one."""
        if self.own is not None:
            self.own.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        return dict(self.levels)

    def request(self, levels: Sequence[str]) -> None:
        """The levels to be read. ConfigError (with the nearest names) for one that the encoder does not have."""
        for name in levels:
            if name not in self.levels:
                raise ConfigError(f"VAETaps: there is no level {name!r}{nearest(name, self.levels)}")
        self.requested = tuple(name for name in self.levels if name in set(levels))

    @property
    def shared_levels(self) -> tuple[str, ...]:
        """What the tokenizer's own pass shall yield for this prior."""
        return () if self.own is not None else self.requested

    def forward(self, step: Step) -> Features:
        """-> {level: [B, C, h, w]}, without gradient: from the tokenizer's pass where that yielded them, else from a
        pass of their own. UserError where there is no image to make them from."""
        done = step.encoded.taps if self.own is None and step.encoded is not None else {}
        if self.own is None and all(name in done for name in self.requested):
            return {name: done[name] for name in self.requested}
        if step.images is None:
            raise UserError(f"VAETaps: the batch has neither images nor the levels {', '.join(self.requested)}; train "
                            "on images, or on latents stored with these features.")  # fmt: skip
        source = self.__dict__["tokenizer"] if self.own is None else self.own
        return source.encode(step.images, self.requested, latent=False).taps
