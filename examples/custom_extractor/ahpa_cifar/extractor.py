"""CIFAR-10 ResNets as feature extractors, for data sets of small images that Inception, which needs
299 pixels, does not fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ahpa.evaluation.extractors import (
    WEIGHTS_VARIABLE,
    NetworkExtractor,
    file_of_variable,
    resized,
)
from ahpa.registry import EXTRACTORS, UserError
from ahpa.registry.files import user_path
from ahpa.registry.precision import full_precision
from ahpa.registry.validation import positive_int
from ahpa.registry.weight_files import read_state_dict

from .network import MEAN, STD, WIDTHS, CifarResNet

SIDE = 32


@EXTRACTORS.register_module(name="cifar-resnet")
class CifarFeatures(NetworkExtractor):
    """A ResNet for CIFAR-10: its 64 pooled features, and its 10 logits.

    Args:
        weights: File of the weights, with the names of akamaster/pytorch_resnet_cifar10; None for
            cifar10_resnet56.safetensors (or the number of `blocks`) in the folder AHPA_WEIGHTS.
        blocks: Number of blocks of each width: 7 for ResNet-44, 9 for ResNet-56.
    """

    outputs = {"pooled": WIDTHS[-1], "logits": 10}

    def __init__(self, *, weights: str | None = None, blocks: int = 9) -> None:
        super().__init__()
        self.weights = weights
        self.blocks = positive_int("blocks", blocks)
        self.layers = 6 * self.blocks + 2
        for name, values in (("mean", MEAN), ("std", STD)):
            value = torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def weight_file(self) -> Path:
        """Return the file of the weights. Raises UserError without it."""
        if self.weights is not None:
            return user_path(self.weights, "cifar-resnet")
        name = f"cifar10_resnet{self.layers}.safetensors"
        path = file_of_variable([name])
        if path is None:
            raise UserError(
                f"cifar-resnet: put {name} into a folder and set {WEIGHTS_VARIABLE} to the folder, "
                "or give the file as the option 'weights'. It holds the state_dict of "
                f"resnet{self.layers} of github.com/akamaster/pytorch_resnet_cifar10."
            )
        return path

    def build(self, path: Path | None) -> nn.Module:
        """Build the network on the CPU, with its weights."""
        network = CifarResNet(self.blocks)
        assert path is not None
        try:
            network.load_state_dict(read_state_dict(path, "cifar-resnet"))
        except RuntimeError as error:
            raise UserError(f"cifar-resnet: {path} does not fit ResNet-{self.layers}.") from error
        return network

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the features of images, uint8 [B, 3, H, W]."""
        self.load()
        with full_precision(images.device):
            pooled = self.network((resized(images, SIDE) / 255 - self.mean) / self.std)
            return {"pooled": pooled, "logits": self.network.linear(pooled)}

    def description(self) -> dict[str, Any]:
        """Return the network and its preprocessing."""
        return {
            "network": f"CIFAR-10 ResNet-{self.layers}",
            "side": SIDE,
            "mean": MEAN,
            "std": STD,
        }
