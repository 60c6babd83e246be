"""AHPA's prior: levels of a frozen VAE encoder (section 4.1), from the tokenizer's own pass or from another autoencoder."""

from collections.abc import Sequence

from ..registry import AUTOENCODERS, PRIORS, ConfigError, build, nearest
from ..registry.contracts import Features, LevelSpec, Prior, Step


@PRIORS.register_module()
class VAETaps(Prior):
    """Levels of an autoencoder's encoder; with none of its own it shares the tokenizer's pass, which costs nothing more.

    autoencoder: config of another one as the supervisor (computed only as deep as needed), whose precision is
    `precision` unless its config says otherwise. ConfigError where the tokenizer has no levels to share.
    """

    def __init__(self, *, autoencoder=None, precision: str = "bf16"):
        super().__init__()
        self.own = None
        if autoencoder is not None:
            cfg = {"precision": precision, **autoencoder} if isinstance(autoencoder, dict) else autoencoder
            self.own = build(AUTOENCODERS, cfg, where="autoencoder")
        self.levels, self.requested = (self.own.levels if self.own else {}), ()

    def bind(self, *, tokenizer, backbone) -> None:
        if self.own is None:
            self.levels = getattr(tokenizer, "levels", {})
            if not self.levels:
                raise ConfigError(f"VAETaps: the tokenizer {type(tokenizer).__name__} has no levels to share; give "
                                  "VAETaps an `autoencoder` of its own.")  # fmt: skip

    def load(self) -> None:
        if self.own is not None:
            self.own.load()

    def spec(self, backbone) -> dict[str, LevelSpec]:
        return dict(self.levels)

    def request(self, levels: Sequence[str]) -> None:
        for name in levels:
            if name not in self.levels:
                raise ConfigError(f"VAETaps: there is no level {name!r}{nearest(name, self.levels)}")
        self.requested = tuple(name for name in self.levels if name in set(levels))

    @property
    def shared_levels(self) -> tuple[str, ...]:
        """What the tokenizer's own pass shall yield for this prior."""
        return () if self.own is not None else self.requested

    def forward(self, step: Step) -> Features:
        """-> {level: [B, C, h, w]}, without gradient."""
        if self.own is not None:
            return self.own.encode(step.images, self.requested, latent=False).taps
        return {name: step.encoded.taps[name] for name in self.requested}
