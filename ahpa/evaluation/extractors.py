"""What the feature extractors share: loading, the identity of weights, resizing, and short names.

Weights are looked for in this order: the option `weights`; the folder named by the environment
variable AHPA_WEIGHTS; the cache of whoever published them; the network.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import EXTRACTORS, ConfigError, build, nearest
from ..registry.contracts import FeatureExtractor, Need
from ..registry.validation import choice
from .protocol import canonical_json

WEIGHTS_VARIABLE = "AHPA_WEIGHTS"
CHUNK = 1 << 20  # bytes that are hashed at once

PRESETS: dict[str, dict[str, Any]] = {
    "dinov2-l": {"type": "timm", "model": "vit_large_patch14_dinov2.lvd142m", "side": 224},
    "convnextv2-b": {"type": "timm", "model": "convnextv2_base.fcmae_ft_in22k_in1k", "side": 224},
    "mae-l": {"type": "timm", "model": "vit_large_patch16_224.mae"},
    "siglip2-so400m": {"type": "timm", "model": "vit_so400m_patch14_siglip_224.v2_webli"},
    "clip-l": {"type": "open-clip", "model": "ViT-L-14", "weights": "openai"},
    "clip-l-score": {"type": "open-clip-score", "model": "ViT-L-14", "weights": "openai"},
    "clip-l-336": {"type": "open-clip", "model": "ViT-L-14-336", "weights": "openai"},
}
"""Short names of networks that one class serves with other options."""


def extractor_config(extractor: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a feature extractor.

    Args:
        extractor: A registered or short name such as "tiny-vit" or "dinov2-l"; or a config whose
            `type` is one and whose further options override it.

    Raises:
        ConfigError: If there is no such name, with the nearest valid ones.
    """
    given = {"type": extractor} if isinstance(extractor, str) else dict(extractor)
    name = given.get("type")
    if isinstance(name, str) and name in PRESETS:
        return {**PRESETS[name], **{key: value for key, value in given.items() if key != "type"}}
    if isinstance(name, str):
        known = EXTRACTORS.names()
        if name.removeprefix("ahpa.") not in known:
            raise ConfigError(
                f"no feature extractor is called {name!r}{nearest(name, [*known, *PRESETS])}"
            )
    return given


def extractor_name(extractor: str | Mapping[str, Any]) -> str:
    """Return the short name by which figures call an extractor."""
    return extractor if isinstance(extractor, str) else str(extractor.get("type"))


def extractor_key(extractor: str | Mapping[str, Any]) -> str:
    """Return the config as canonical JSON, as a `Need` names it."""
    try:
        return canonical_json(extractor_config(extractor))
    except TypeError as error:
        raise ConfigError(f"extractor: its options must be plain values: {error}.") from error


def build_extractor(extractor: str | Mapping[str, Any], *, where: str = "") -> FeatureExtractor:
    """Build a feature extractor from its name or config; no weights are read.

    Args:
        extractor: See `extractor_config`.
        where: Its place in a config; begins every message.

    Raises:
        ConfigError: For an unknown name or a mistake in the options.
    """
    return build(EXTRACTORS, extractor_config(extractor), where=where)


def output_of(extractor: FeatureExtractor, output: str | None) -> str:
    """Return an output of an extractor, its first one for None. Raises ConfigError without it."""
    if output is None:
        return next(iter(extractor.outputs))
    return choice("output", output, tuple(extractor.outputs))


def need_of(extractor: str | Mapping[str, Any], output: str | None, kind: str) -> Need:
    """Return what a metric needs of an extractor.

    Args:
        extractor: See `extractor_config`.
        output: Its output; None for its first one.
        kind: Kind of the statistic, as `Need` names it.

    Raises:
        ConfigError: If there is no such extractor or output.
    """
    chosen = output_of(build_extractor(extractor, where="extractor"), output)
    return Need(extractor_key(extractor), chosen, kind)


def figure_name(figure: str, extractor: str | Mapping[str, Any], usual: str) -> str:
    """Return the name of a figure: "kid" on its usual extractor, "kid:tiny-vit" on another."""
    name = extractor_name(extractor)
    return figure if name == usual else f"{figure}:{name}"


def own_extractor(figure: str, extractor: str | Mapping[str, Any], preset: str) -> str:
    """Return the key of the extractor that a figure is defined by.

    Args:
        figure: Name of the figure, for messages.
        extractor: The extractor that was asked for.
        preset: Name of the one that defines the figure; `extractor` may change its weight file.

    Raises:
        ConfigError: If it is another network.
    """
    wanted = extractor_config(preset)
    given = extractor_config(extractor)
    changed = {key for key in {*wanted, *given} if wanted.get(key) != given.get(key)}
    if changed - {"weights", "seed"}:
        name = extractor_name(extractor)
        raise ConfigError(
            f"extractor: {figure} is defined by {preset!r}, got {name!r}; the Frechet distance on "
            f"other features is 'fd:{name}'."
        )
    return extractor_key(extractor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def file_of_variable(names: Iterable[str]) -> Path | None:
    """Return the first of these files or folders in the folder AHPA_WEIGHTS; None without one."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    paths = (Path(folder).expanduser() / name for name in names)
    return next((path for path in paths if path.exists()), None)


def resized(images: Tensor, side: int) -> Tensor:
    """Resize images as PIL does: bicubic with antialias, rounded to 8 bits.

    Args:
        images: uint8 [B, 3, H, W]; not square images are squeezed.
        side: Side of the result in pixels.

    Returns:
        float32 [B, 3, side, side] in [0, 255].
    """
    values = images.float()
    for size in ((images.shape[-2], side), (side, side)):  # PIL rounds after each direction
        if tuple(values.shape[-2:]) != size:
            values = F.interpolate(
                values, size=size, mode="bicubic", align_corners=False, antialias=True
            )
            values = values.round().clamp(0, 255)
    return values


class NetworkExtractor(FeatureExtractor):
    """Base of the extractors that hold one frozen network. A subclass builds and runs it.

    Attributes:
        network: The network; None until `load`.
        weights_sha256: SHA-256 of the weight file; None for random weights, and until `load`.
    """

    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = None
        self.weights_sha256: str | None = None
        # Follows `.to()`: the device of a network that is loaded later.
        self.register_buffer("place", torch.empty(0, device="cpu"), persistent=False)

    @abstractmethod
    def weight_file(self) -> Path | None:
        """Return the weight file, or None for random weights. Raises UserError without one."""

    @abstractmethod
    def build(self, path: Path | None) -> nn.Module:
        """Build the network on the CPU, with the weights of a file or random ones.

        Raises:
            UserError: If the file is unsafe or does not fit.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return what decides the features beside the weights: network, input size, resizing."""

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""
        if self.network is None:
            path = self.weight_file()
            network = self.build(path).to(self.place.device)
            self.network = network.float().eval().requires_grad_(False)
            self.weights_sha256 = None if path is None else file_sha256(path)

    def identity(self) -> dict[str, Any]:
        """Return the network, the SHA-256 of its weights and its preprocessing."""
        return {**self.description(), "weights_sha256": self.weights_sha256 or "random"}
