"""The Inception network of the field's FID, with the outputs that ADM's evaluator reads.

The network is torch-fidelity's port of the TensorFlow graph of 2015-12-05: its blocks, its resize
in the manner of TensorFlow 1 and its weights are used, and nothing else of that package.
"""

import hashlib
import os
import urllib.request
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import EXTRACTORS, UserError
from ..registry.files import user_path, whole_file
from ..registry.hub import HUB_SECONDS
from ..registry.precision import full_precision
from ..registry.validation import integer
from ..registry.vision_files import first_line
from ..registry.weight_files import read_state_dict
from .extractors import WEIGHTS_VARIABLE, NetworkExtractor, file_of_variable

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_BEGINS = "6726825d"
SIDE = 299
POOL = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL = 17 * 17 * SPATIAL_CHANNELS
INSTALL = "pip install 'ahpa[evaluation]'"
RANDOM = "random"


def fidelity() -> Any:
    """Return torch-fidelity's module of the network. Raises UserError if it is not installed."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as error:
        raise UserError(
            f"Inception's features need torch-fidelity, which is not installed: {INSTALL}."
        ) from error
    return feature_extractor_inceptionv3


class InceptionNetwork(nn.Module):
    """The graph up to the logits; parameters have torch-fidelity's names, those before the last
    layer behind "stem."."""

    def __init__(self) -> None:
        super().__init__()
        blocks = fidelity()
        conv = blocks.BasicConv2d
        layers: list[tuple[str, nn.Module]] = [
            ("Conv2d_1a_3x3", conv(3, 32, kernel_size=3, stride=2)),
            ("Conv2d_2a_3x3", conv(32, 32, kernel_size=3)),
            ("Conv2d_2b_3x3", conv(32, 64, kernel_size=3, padding=1)),
            ("MaxPool_1", nn.MaxPool2d(kernel_size=3, stride=2)),
            ("Conv2d_3b_1x1", conv(64, 80, kernel_size=1)),
            ("Conv2d_4a_3x3", conv(80, 192, kernel_size=3)),
            ("MaxPool_2", nn.MaxPool2d(kernel_size=3, stride=2)),
            ("Mixed_5b", blocks.InceptionA(192, pool_features=32)),
            ("Mixed_5c", blocks.InceptionA(256, pool_features=64)),
            ("Mixed_5d", blocks.InceptionA(288, pool_features=64)),
            ("Mixed_6a", blocks.InceptionB(288)),
            ("Mixed_6b", blocks.InceptionC(768, channels_7x7=128)),
            ("Mixed_6c", blocks.InceptionC(768, channels_7x7=160)),
            ("Mixed_6d", blocks.InceptionC(768, channels_7x7=160)),
            ("Mixed_6e", blocks.InceptionC(768, channels_7x7=192)),
            ("Mixed_7a", blocks.InceptionD(768)),
            ("Mixed_7b", blocks.InceptionE_1(1280)),
            ("Mixed_7c", blocks.InceptionE_2(2048)),
        ]
        self.stem = nn.Sequential(OrderedDict(layers))
        self.fc = nn.Linear(POOL, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the three outputs for images, uint8 [B, 3, H, W]."""
        resize = fidelity().interpolate_bilinear_2d_like_tensorflow1x
        x = resize(images.float(), size=(SIDE, SIDE), align_corners=False)
        x = (x - 128) / 128
        spatial = x
        for name, layer in self.stem.named_children():
            x = layer(x)
            if name == "Mixed_6d":  # its first channels are those of its branch of 1 x 1
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # H, W, C
        pool = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.fc.weight.mT}


@EXTRACTORS.register_module(name="inception")
class InceptionFeatures(NetworkExtractor):
    """Inception-v3 as FID uses it: "pool" (2048), "spatial" (2023) and "logits" (1008).

    "pool" is pool_3, for FID, precision and recall; "spatial" the first 7 channels of the layer
    mixed_6/conv, 17 x 17, flattened in the order height, width, channel, for sFID; "logits" the
    logits without their bias, for the Inception Score, as in ADM's evaluator. Images are resized
    to 299 pixels by TensorFlow 1's bilinear rule, without antialias, inside the network.

    Args:
        weights: A file; None for torch-fidelity's file from AHPA_WEIGHTS, from torch's cache or
            from the network; or "random".
        seed: Seed of random weights.
    """

    outputs = {"pool": POOL, "spatial": SPATIAL, "logits": CLASSES}

    def __init__(self, *, weights: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.weights = weights
        self.seed = integer("seed", seed)

    def weight_file(self) -> Path | None:
        """Return the file of the weights; None for random ones."""
        fidelity()  # say first what is not installed
        if self.weights == RANDOM:
            return None
        if self.weights is not None:
            return user_path(self.weights, "inception")
        found = file_of_variable([FILE])
        cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if found is not None:
            return found
        if not cached.is_file():
            fetch_inception(cached)
        return cached

    def build(self, path: Path | None) -> nn.Module:
        """Build the network on the CPU."""
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = InceptionNetwork()
        if path is None:
            return network
        state = read_state_dict(path, "inception")
        names = {}
        for name, value in state.items():
            names[name if name.startswith("fc.") else f"stem.{name}"] = value
        try:
            network.load_state_dict(names)
        except RuntimeError as error:
            raise UserError(
                f"inception: {path} does not hold torch-fidelity's Inception weights ({FILE}): "
                f"{first_line(error)}"
            ) from error
        return network

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the three outputs for images, uint8 [B, 3, H, W]."""
        self.load()
        with full_precision(images.device):
            return self.network(images)

    def description(self) -> dict[str, Any]:
        """Return the network and its preprocessing."""
        return {
            "network": "inception-v3 2015-12-05",
            "seed": self.seed if self.weights == RANDOM else None,
            "side": SIDE,
            "resize": "bilinear, TensorFlow 1",
        }


def fetch_inception(target: Path) -> None:
    """Download the weights (95 MB).

    Args:
        target: Where to put them.

    Raises:
        UserError: If that fails; says what to fetch and where to put it.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    reason = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            with urllib.request.urlopen(URL, timeout=HUB_SECONDS) as answer:
                content = answer.read()
            found = hashlib.sha256(content).hexdigest()
            if not found.startswith(SHA256_BEGINS):
                raise OSError(f"the file's SHA-256 is {found[:8]}..., not {SHA256_BEGINS}...")
            with whole_file(target) as aside:
                aside.write_bytes(content)
            return
        except OSError as error:
            reason = str(error) or type(error).__name__
    raise UserError(
        f"Inception's weights are missing and could not be downloaded ({reason}). Fetch {URL} on a "
        f"machine with a network and put it at {target}, or into a folder that the environment "
        f"variable {WEIGHTS_VARIABLE} names, or give the extractor's option `weights` its path."
    )
