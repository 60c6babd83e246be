"""A CIFAR-10 ResNet as a prior: a vision encoder whose levels a model is aligned with, or that
`ahpa analyze probe` puts beside other teachers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ahpa.registry import PRIORS, UserError
from ahpa.registry.contracts import Clean, CleanPrior, Features, Geometry, LevelSpec
from ahpa.registry.precision import full_precision
from ahpa.registry.validation import positive_int
from ahpa.registry.weight_files import read_state_dict

from .network import MEAN, STD, WIDTHS, CifarResNet


@PRIORS.register_module()
class CifarResNetTaps(CleanPrior):
    """The outputs of a CIFAR-10 ResNet's three widths: levels "stage1", "stage2" and "stage3".

    Args:
        geometry: The model's sizes; passed by ahpa.
        weights: File of the weights, with the names of akamaster/pytorch_resnet_cifar10.
        blocks: Number of blocks of each width: 7 for ResNet-44, 9 for ResNet-56.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, geometry: Geometry, weights: str, blocks: int = 7) -> None:
        super().__init__(geometry=geometry)
        self.weights = weights
        self.blocks = positive_int("blocks", blocks)
        self.levels = {
            f"stage{number}": LevelSpec(width, 2 ** (number - 1))
            for number, width in enumerate(WIDTHS, 1)
        }
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.network: CifarResNet | None = None

    def load(self) -> None:
        """Read the weights. Raises UserError if they are missing or of another network."""
        if self.network is not None:
            return
        network = CifarResNet(self.blocks)
        try:
            network.load_state_dict(read_state_dict(self.weights, "CifarResNetTaps"))
        except RuntimeError as error:
            layers = 6 * self.blocks + 2
            raise UserError(
                f"CifarResNetTaps: {self.weights} does not fit ResNet-{layers}."
            ) from error
        self.network = network.to(self.mean.device).eval().requires_grad_(False)

    @torch.no_grad()
    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return {level: [B, C, h, w]}, shallow -> deep. Raises UserError without images."""
        if clean.images is None:
            raise UserError("CifarResNetTaps: the batch has latents and no images.")
        self.load()
        assert self.network is not None
        with full_precision(clean.images.device):
            maps = self.network.maps((clean.images.float() - self.mean) / self.std)
        named = dict(zip(self.levels, maps, strict=True))
        return {name: named[name] for name in self.levels if name in levels}
