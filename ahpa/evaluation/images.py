"""Sets of images for metrics, read in constant memory: ADM's .npz, a .npy, a folder or a zip of
pictures. And how images of floats become 8 bits, which moves figures by as much as methods do."""

import hashlib
import logging
import math
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..registry import DATASETS, UserError, build
from ..registry.contracts import Dataset
from ..registry.errors import UnreadableSample, printable
from ..registry.files import user_path, whole_file
from ..registry.validation import choice, positive_int
from .extractors import file_sha256

logger = logging.getLogger("ahpa")

ARRAY = "arr_0"  # ADM's name of the images
LABELS = "arr_1"  # ADM's name of their labels
LARGEST_HEADER = 10_000  # bytes of the header of a .npy
LARGEST_LABELS = 1 << 30  # bytes


# ---- from floats to 8 bits ------------------------------------------------------------------

UINT8_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: (255 * x).round(),
    "half-up": lambda x: (255 * x + 0.5).floor(),
    "truncate": lambda x: (255 * x).floor(),
    "256": lambda x: (256 * x).floor(),
}
"""How x in [0, 1] becomes 0..255, before clamping: "round" to the nearest, halves to even (ours);
"half-up" as DiT and SiT write samples; "truncate" as REPA and ADM do; "256" as some loaders."""


def to_uint8(images: Tensor, rule: str = "round") -> Tensor:
    """Turn images of floats into 8 bits.

    Args:
        images: Floats, about [0, 1]; values outside are clamped.
        rule: Name of one of `UINT8_RULES`.

    Returns:
        uint8, shaped as `images`.

    Raises:
        ConfigError: For an unknown rule.
        UserError: If a value is not a number.
    """
    choice("uint8 rule", rule, tuple(UINT8_RULES))
    values = images.float()
    if values.isnan().any():
        raise UserError("an image holds values that are not numbers (NaN); it cannot be saved.")
    return UINT8_RULES[rule](values).clamp(0, 255).to(torch.uint8)


# ---- sets of images -------------------------------------------------------------------------


class Batch(NamedTuple):
    """Images of a set.

    Attributes:
        indices: Index of each image in the whole set, int64 [B].
        images: uint8 [B, 3, H, W].
        prompts: The prompt of each image, or None.
    """

    indices: Tensor
    images: Tensor
    prompts: Sequence[str] | None = None


def share(count: int, rank: int, world: int) -> range:
    """Return the indices of one process: consecutive, and all processes' shares are disjoint."""
    return range(rank * count // world, (rank + 1) * count // world)


class ImageSet(ABC):
    """A stored set of images in a fixed order.

    Args:
        path: Where it is stored.
        count: Number of images.
        size: (height, width) in pixels.
        labels: Label of each image [N] int64, or None.
        prompts: Prompt of each image, or None.
    """

    def __init__(
        self,
        path: Path,
        *,
        count: int,
        size: tuple[int, int],
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self.count = count
        self.size = size
        self.labels = labels
        self.prompts = prompts
        self._sha256: str | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; of a folder, of the names and contents of its pictures."""
        if self._sha256 is None:
            self._sha256 = self.compute_sha256()
        return self._sha256

    def compute_sha256(self) -> str:
        """Read everything and return the SHA-256."""
        return file_sha256(self.path)

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the images of ascending indices, uint8 [H, W, 3]."""

    def batches(
        self, size: int, *, rank: int = 0, world: int = 1, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Yield the images of one process in batches.

        Args:
            size: Number of images at once.
            rank: Number of this process.
            world: Number of processes.
            indices: Ascending indices of the images that are read; None for all.

        Raises:
            UserError: If an image cannot be read.
        """
        positive_int("batch", size)
        wanted = range(len(self)) if indices is None else indices
        own = share(len(wanted), rank, world)
        mine = wanted[own.start : own.stop]
        pictures = self.read(mine)
        for start in range(0, len(mine), size):
            numbers = list(mine[start : start + size])
            stacked = np.stack([next(pictures) for _ in numbers])
            images = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))
            prompts = None
            if self.prompts is not None:
                prompts = [self.prompts[number] for number in numbers]
            yield Batch(torch.tensor(numbers), images, prompts)


# ---- arrays ---------------------------------------------------------------------------------


class ArrayHeader(NamedTuple):
    """What the header of a .npy says.

    Attributes:
        shape: Shape of the array.
        dtype: Its dtype.
        by_columns: Whether it is stored in Fortran's order.
        offset: Bytes before the first element.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool
    offset: int


def read_header(file: BinaryIO, what: str) -> ArrayHeader:
    """Read the header of a .npy without reading or unpickling anything else.

    Raises:
        UserError: If it is damaged or holds Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version} of the format is not read")
        shape, by_columns, dtype = readers[version](file, max_header_size=LARGEST_HEADER)
    except Exception as error:  # a damaged file may fail in any way
        reason = printable(str(error))[:200]
        raise UserError(f"{what} is no readable NumPy array: {reason}") from error
    if dtype.hasobject:
        raise UserError(
            f"{what} holds Python objects, which could run code; save a plain uint8 array."
        )
    return ArrayHeader(tuple(shape), dtype, by_columns, file.tell())


def image_header(file: BinaryIO, what: str, length: int) -> ArrayHeader:
    """Read the header of an array of images.

    Args:
        file: The open file.
        what: What it is, for messages.
        length: Bytes of the file.

    Raises:
        UserError: Unless it is uint8 [N, H, W, 3] with N of at least 1, complete.
    """
    header = read_header(file, what)
    if header.dtype != np.uint8:
        raise UserError(
            f"{what} has the dtype {header.dtype}, expected uint8: images as they are saved, "
            "0 to 255."
        )
    shape = header.shape
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        hint = " (it looks like [N, 3, H, W]; transpose it)" if shape[1:2] == (3,) else ""
        raise UserError(f"{what} has the shape {shape}, expected [N, H, W, 3]{hint}.")
    if header.by_columns:
        raise UserError(f"{what} is stored by columns; save it in C order.")
    expected = header.offset + math.prod(shape)
    if length != expected:
        raise UserError(
            f"{what} has {length} bytes, but its header promises {expected}: it is truncated or "
            "damaged."
        )
    return header


class ArrayImages(ImageSet):
    """Images in a .npy, or in the member arr_0 of an .npz, read one after another.

    Args:
        path: The file.
        prompts: Prompt of each image, or None.

    Raises:
        UserError: If it is something else.
    """

    def __init__(self, path: Path, *, prompts: Sequence[str] | None = None) -> None:
        self.path = path
        with self.opened() as (file, length):
            self.header = image_header(file, self.what, length)
        count, height, width, _ = self.header.shape
        super().__init__(
            path, count=count, size=(height, width), labels=self.read_labels(), prompts=prompts
        )

    @property
    def zipped(self) -> bool:
        """Whether it is an .npz."""
        return self.path.suffix.lower() == ".npz"

    @property
    def what(self) -> str:
        """Its name for messages."""
        return f"{ARRAY} of {self.path}" if self.zipped else str(self.path)

    @contextmanager
    def opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """Open the array; yields the file and its number of bytes."""
        if self.zipped:
            with opened_member(self.path, ARRAY) as found:
                yield found
        else:
            with open(self.path, "rb") as file:
                yield file, self.path.stat().st_size

    def read_labels(self) -> Tensor | None:
        """Return the labels that ADM's samples bring as arr_1, or None."""
        if not self.zipped or LABELS not in member_names(self.path):
            return None
        labels = read_array(self.path, LABELS, most=LARGEST_LABELS)
        if labels.shape != (self.header.shape[0],) or labels.dtype.kind not in "iu":
            raise UserError(
                f"{LABELS} of {self.path} is {labels.dtype} {labels.shape}, expected one integer "
                f"label for each of the {self.header.shape[0]} images."
            )
        return torch.from_numpy(labels.astype(np.int64))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the images of ascending indices; those in between are passed over."""
        _, height, width, _ = self.header.shape
        size = height * width * 3
        with self.opened() as (file, _length):
            for index in indices:
                file.seek(self.header.offset + index * size)
                data = file.read(size)
                if len(data) != size:
                    raise UserError(f"{self.what} ends within the image {index}.")
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def member_names(path: Path) -> list[str]:
    """List the arrays of an .npz. Raises UserError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no readable .npz: {printable(str(error))}.") from error


@contextmanager
def opened_member(path: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open an array of an .npz; yields the file and its number of bytes.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    names = member_names(path)
    if name not in names:
        found = ", ".join(printable(other) for other in names[:8]) or "nothing"
        raise UserError(f"{path} has no array {name!r}; it holds {found}.")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            yield file, archive.getinfo(f"{name}.npy").file_size  # type: ignore[misc]
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        reason = printable(str(error))[:200]
        raise UserError(f"{name} of {path} is damaged: {reason}.") from error


def read_array(path: Path, name: str, *, most: int) -> np.ndarray:
    """Read a whole array of an .npz.

    Args:
        path: The .npz.
        name: Name of the array.
        most: Largest number of bytes.

    Raises:
        UserError: If it is missing, damaged, too large, or holds Python objects.
    """
    what = f"{name} of {path}"
    with opened_member(path, name) as (file, length):
        header = read_header(file, what)
        size = header.dtype.itemsize * math.prod(header.shape)
        if length - header.offset != size or size > most:
            raise UserError(
                f"{what} has {length} bytes, but its header promises {header.offset + size}."
                if size <= most
                else f"{what} has {size} bytes, more than the {most} expected at most."
            )
        data = file.read(size)
    if len(data) != size:
        raise UserError(f"{what} is truncated.")
    order: Literal["C", "F"] = "F" if header.by_columns else "C"
    return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)


# ---- pictures -------------------------------------------------------------------------------


class PictureImages(ImageSet):
    """Pictures in a folder or a zip, with class folders or without.

    Args:
        path: The folder or the zip.
        resolution: Side to which pictures are prepared as ADM does (centre crop); None to take them
            as they are: square, and all of the size of the first.
        prompts: Prompt of each image, in the order of the names, or None.

    Raises:
        UserError: If there are no pictures, or the first is not square.
    """

    def __init__(
        self,
        path: Path,
        *,
        resolution: int | None = None,
        prompts: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        exact = resolution is None
        side = self._side_of_first() if resolution is None else resolution
        self.dataset = self._dataset(side, exact)
        self.problems: dict[int, str] = {}  # index -> why it cannot be read
        labels = self.dataset.labels if self.dataset.classes is not None else None
        super().__init__(
            path,
            count=len(self.dataset),
            size=(side, side),
            labels=None if labels is None else torch.tensor(labels),
            prompts=prompts,
        )

    def _dataset(self, resolution: int, exact: bool) -> Any:
        """Build the data set of the pictures: with classes if there are class folders."""
        options = {"root": str(self.path), "exact": exact}
        found: list[Any] = []
        mistakes: list[UserError] = []
        for kind in ("FlatImages", "ImageFolder"):
            try:
                config = {"type": kind, **options}
                found.append(build(DATASETS, config, resolution=resolution))
            except UserError as error:
                mistakes.append(error)
        if not found:
            raise mistakes[-1]
        if len(found) > 1:
            raise UserError(
                f"{self.path} holds {len(found[0])} pictures beside folders of {len(found[1])}; "
                "give one of the two."
            )
        for note in found[0].notes:
            logger.warning("%s", note)
        return found[0]

    def _side_of_first(self) -> int:
        probe = self._dataset(8, False)
        width, height = probe.picture_size(0)
        if width != height:
            raise UserError(
                f"{self.path}: {printable(probe.sample_id(0))} has {width} x {height} pixels and "
                "is not square; give a resolution, to which pictures are cropped."
            )
        return width

    def compute_sha256(self) -> str:
        """Return the SHA-256 of a zip, or of the names and contents of a folder's pictures."""
        if self.path.is_file():
            return file_sha256(self.path)
        found = hashlib.sha256()
        for index in range(len(self)):
            name = self.dataset.prefix + self.dataset.names[index]
            found.update(name.encode("utf-8", "surrogatepass") + b"\0")
            found.update(bytes.fromhex(file_sha256(self.path / name)))
        return found.hexdigest()

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the pictures. Raises UserError for one that cannot be read: none replaces it."""
        dataset: Dataset = self.dataset
        for index in indices:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnreadableSample)
                item = dataset[index]
            self.problems |= dataset.take_problems()
            if item["index"] != index:
                name = printable(dataset.sample_id(index))
                reason = self.problems.get(index, "it was found unreadable before")
                raise UserError(f"{self.path}: {name} cannot be read ({reason}).")
            yield item["image"].numpy().transpose(1, 2, 0)


def open_images(
    source: Path | str,
    *,
    resolution: int | None = None,
    prompts: Path | str | None = None,
) -> ImageSet:
    """Open a stored set of images.

    Args:
        source: ADM's .npz (arr_0 uint8 [N, H, W, 3], labels in arr_1 or none), a .npy of the same
            shape, or a folder or .zip of pictures.
        resolution: Side to which pictures are cropped as ADM does; None to take them as they are.
        prompts: Text file with one prompt a line, in the order of the images.

    Raises:
        UserError: If there is nothing to read, or it is something else.
    """
    path = user_path(source, "the images")
    if not path.exists():
        raise UserError(f"there are no images at {path} (an .npz, a .npy, a folder or a .zip).")
    if resolution is not None:
        positive_int("resolution", resolution)
    lines = None if prompts is None else read_prompts(prompts)
    found: ImageSet
    if path.suffix.lower() in (".npz", ".npy") and path.is_file():
        found = ArrayImages(path, prompts=lines)
        if resolution is not None and found.size != (resolution, resolution):
            height, width = found.size
            raise UserError(
                f"resolution: {path} holds images of {height} x {width} pixels, which are not "
                f"resized; leave it out, or give {height}."
            )
    else:
        found = PictureImages(path, resolution=resolution, prompts=lines)
    if lines is not None and len(lines) != len(found):
        raise UserError(f"{prompts} has {len(lines)} prompts for {len(found)} images of {path}.")
    return found


def read_prompts(path: Path | str) -> list[str]:
    """Read one prompt a line. Raises UserError if the file cannot be read or is empty."""
    file = user_path(path, "prompts")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {file} cannot be read ({error}).") from error
    if not text.strip():
        raise UserError(f"prompts: {file} is empty; it must hold one prompt a line.")
    return text.removesuffix("\n").split("\n")  # splitlines() would also split at U+2028


# ---- writing --------------------------------------------------------------------------------


def write_npz(
    path: Path,
    images: Iterable[Tensor],
    *,
    count: int,
    size: tuple[int, int],
    arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """Write ADM's .npz in constant memory; the file is complete or absent.

    Args:
        path: The .npz.
        images: Batches uint8 [B, 3, H, W], in order.
        count: Number of images in all.
        size: (height, width) in pixels.
        arrays: Further arrays by name, such as arr_1 with labels.

    Raises:
        ValueError: If the batches do not hold `count` images of this size.
        UserError: If the file cannot be written.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
    with whole_file(path) as aside, zipfile.ZipFile(aside, "w", allowZip64=True) as archive:
        with archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            seen = 0
            for batch in images:
                if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != (3, *size):
                    raise ValueError(f"a batch is {batch.dtype} {tuple(batch.shape)}")
                seen += len(batch)
                file.write(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())
        if seen != count:
            raise ValueError(f"got {seen} images, expected {count}")
        for name, array in (arrays or {}).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
