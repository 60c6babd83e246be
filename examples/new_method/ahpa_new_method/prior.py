"""`GradientPyramid`: targets without a network, from the colours and the edges of the image."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ahpa.registry import PRIORS, ConfigError, UserError
from ahpa.registry.contracts import Clean, CleanPrior, Features, Geometry, LevelSpec
from ahpa.registry.validation import positive_int

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the central differences of a picture along x and y, edges replicated.

    Args:
        image: [B, 1, h, w].

    Returns:
        Two tensors [B, 1, h, w]: (I(x + 1) - I(x - 1)) / 2, and the same along y.
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return along_x, along_y


def edge_energies(image: Tensor, orientations: int) -> Tensor:
    """Return oriented edge energies (g . u_k)^2 of the luminance gradient g.

    The directions u_k have the angles pi k / K. Over all K >= 2 of them the energies sum to
    K / 2 |g|^2.

    Args:
        image: [B, 3, h, w] in [0, 1].
        orientations: Number K of directions.

    Returns:
        [B, K, h, w].
    """
    weights = torch.tensor(LUMA, device=image.device).view(1, 3, 1, 1)
    luma = (image * weights).sum(1, keepdim=True)
    along_x, along_y = gradients(luma)
    angles = torch.arange(orientations, device=image.device) * (math.pi / orientations)
    angles = angles.view(1, -1, 1, 1)
    return (along_x * angles.cos() + along_y * angles.sin()).square()


@PRIORS.register_module()
class GradientPyramid(CleanPrior):
    """Colour means, colour deviations and oriented edge energies of the image at several scales.

    The level "scale<s>" has one feature for each square of s x s pixels: the mean of the three
    colours, their standard deviation, and the root mean square of the luminance gradient along
    each orientation. The gradient is that of the image averaged down to s / 4 pixels, so that a
    coarse level sees coarse edges. Nothing is learned and no weights are needed.

    Args:
        geometry: The model's sizes; passed by ahpa.
        scales: Pixels per feature of each level, fine to coarse; multiples of 4 that divide the
            resolution.
        orientations: Number of edge orientations, at least 2.

    Raises:
        ConfigError: If a scale does not fit the resolution or the scales do not grow.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        scales: Sequence[int] = (4, 8, 16, 32),
        orientations: int = 6,
    ) -> None:
        super().__init__(geometry=geometry)
        self.orientations = positive_int("orientations", orientations)
        if orientations < 2:
            raise ConfigError(f"orientations: must be at least 2, got {orientations}.")
        self.scales = tuple(positive_int("scales", scale) for scale in scales)
        for scale in self.scales:
            if scale % 4 or geometry.resolution % scale:
                raise ConfigError(
                    "scales: must be multiples of 4 that divide the resolution "
                    f"{geometry.resolution}, got {scale}."
                )
        if not self.scales or list(self.scales) != sorted(set(self.scales)):
            raise ConfigError(f"scales: must grow from fine to coarse, got {list(scales)}.")
        spec = {f"scale{s}": LevelSpec(6 + orientations, s) for s in self.scales}
        self.levels = spec

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return {level: [B, 6 + orientations, H / s, W / s]}, fine to coarse, float32.

        Raises:
            UserError: If the batch has latents alone, without images.
        """
        images = clean.images
        if images is None:
            raise UserError("GradientPyramid needs images; the batch has stored latents only.")
        wanted = [scale for scale in self.scales if f"scale{scale}" in levels]
        return {f"scale{scale}": self.level(images.float(), scale) for scale in wanted}

    def level(self, images: Tensor, scale: int) -> Tensor:
        """Return one level [B, 6 + orientations, H / scale, W / scale]."""
        mean = F.avg_pool2d(images, scale)
        variance = F.avg_pool2d(images.square(), scale) - mean.square()
        coarse = F.avg_pool2d(images, scale // 4)
        energy = F.avg_pool2d(edge_energies(coarse, self.orientations), 4)
        return torch.cat([mean, variance.clamp_min(0).sqrt(), energy.sqrt()], dim=1)
