"""What samples are compared with: ADM's reference .npz, or any set of images.

ADM's files hold `mu`, `sigma` (Inception's pool), `mu_s`, `sigma_s` (its spatial features) over a
whole training set, and in `arr_0` the 10,000 images for precision and recall.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..registry import UserError
from ..registry.contracts import Need
from ..registry.files import user_path
from .extractors import file_sha256
from .images import ARRAY, ImageSet, member_names, open_images, read_array
from .inception import POOL, SPATIAL
from .statistics import Moments, Statistic

STORED = {"pool": ("mu", "sigma", POOL), "spatial": ("mu_s", "sigma_s", SPATIAL)}
COUNT = "count"  # our own files say how many images mu and sigma were computed from
LARGEST = 1 << 27  # bytes of a stored array


class Reference:
    """A reference set of images, with the statistics that its file holds.

    Args:
        path: ADM's .npz, or any set of images that `open_images` reads.
        resolution: Side to which pictures are cropped as ADM does; None to take them as they are.

    Raises:
        UserError: If there is none, or it is something else.
    """

    def __init__(self, path: Path | str, *, resolution: int | None = None) -> None:
        self.path = user_path(path, "reference")
        if not self.path.exists():
            raise UserError(
                f"reference: there is nothing at {self.path} (an .npz, a folder or a .zip)."
            )
        self.resolution = resolution
        self.names: list[str] = []
        if self.path.is_file() and self.path.suffix.lower() == ".npz":
            self.names = member_names(self.path)
            if ARRAY not in self.names and "mu" not in self.names:
                raise UserError(
                    f"reference: {self.path} holds neither {ARRAY} (images) nor mu and sigma."
                )
        self._images: ImageSet | None = None
        if ARRAY in self.names or not self.names:
            self._images = open_images(self.path, resolution=resolution)
        self.moments = {output: self._read(output) for output in STORED}
        self._sha256: str | None = None

    @property
    def images(self) -> ImageSet:
        """The images. Raises UserError for a file with mean and covariance alone."""
        if self._images is None:
            raise UserError(
                f"reference: {self.path} holds mean and covariance, but no images ({ARRAY}), which "
                "another metric needs."
            )
        return self._images

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, or of the names and contents of a folder's pictures."""
        if self._sha256 is None:
            own = self._images
            self._sha256 = file_sha256(self.path) if own is None else own.sha256
        return self._sha256

    def stored(self, needs: Iterable[Need]) -> dict[Need, Statistic]:
        """Return the statistics that the file holds: moments of Inception's features."""
        found: dict[Need, Statistic] = {}
        for need in needs:
            moments = self.moments.get(need.output)
            of_inception = json.loads(need.extractor).get("type") == "inception"
            if need.kind == "moments" and of_inception and moments is not None:
                found[need] = moments
        return found

    def identity(self) -> dict[str, Any]:
        """Return what the protocol of an evaluation records."""
        return {
            "sha256": self.sha256,
            "resolution": self.resolution,
            "images": None if self._images is None else len(self._images),
            "stored": sorted(name for name, moments in self.moments.items() if moments is not None),
        }

    def _read(self, output: str) -> Moments | None:
        """Read stored moments; None if the file has none of this output."""
        mean_name, covariance_name, dim = STORED[output]
        if mean_name not in self.names and covariance_name not in self.names:
            return None
        mean, covariance = (
            read_array(self.path, name, most=LARGEST) for name in (mean_name, covariance_name)
        )
        for name, array, shape in (
            (mean_name, mean, (dim,)),
            (covariance_name, covariance, (dim, dim)),
        ):
            if array.shape != shape or array.dtype.kind != "f":
                raise UserError(
                    f"reference: {name} of {self.path} is {array.dtype} {array.shape}, expected "
                    f"floats {shape}: it does not hold Inception's {output!r} features."
                )
            if not np.isfinite(array).all():
                raise UserError(
                    f"reference: {name} of {self.path} holds values that are not finite."
                )
        count = None
        if COUNT in self.names:
            count = int(read_array(self.path, COUNT, most=8).reshape(-1)[0])
        values = [torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance)]
        return Moments.of(values[0], values[1], count)
