"""Class folders, or a zip of them, as a dataset. Nothing is unpacked, nothing outside the root
is read, and files that cannot be decoded are replaced by another picture of the same class."""

import errno
import io
import itertools
import logging
import os
import stat
import time
import warnings
import zipfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..registry import DATASETS, UserError
from ..registry.contracts import Dataset
from ..registry.errors import UnreadableSample, printable
from ..registry.files import user_path
from ..registry.validation import boolean, integer, probability
from .transforms import adm_center_crop, to_rgb

logger = logging.getLogger("ahpa")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that PIL may decode, whatever a file is called; others are refused: EPS runs programs."""
LARGE_MEMBER = 64 << 20  # bytes; a zip member above this size and the ratio below counts as a bomb
LARGE_RATIO = 100  # unpacked bytes per stored byte
ALLOWED_BAD = 10  # unreadable files that are tolerated in a set of any size
SMALLEST = 8  # pixels; least resolution of a dataset
FLIP_SALT = 0xF11B  # separates the mirror flips from other random streams of the same numbers
PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errors of a disk or a network that may pass: the file is read again."""
FIRST_REPORT = 3.0  # seconds after which a search of folders says what it has seen
NEXT_REPORT = 30.0  # seconds between further reports
HOPELESS = 1_000_000  # files and folders after which a tree must have shown some pictures:
HOPELESS_RATIO = 1000  # one in so many files
PAUSES = (0.1, 0.5, 2.0)  # seconds before each new attempt
TRAIN = ("train", "training")
SPLITS = (*TRAIN, "val", "valid", "validation", "test", "testing")  # names of folders of splits
ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".arrow", ".tfrecord", ".lmdb")
HINT = (
    "Expected is a folder, or a .zip of it, with one folder for each class: DIR/cat/001.jpg, "
    "DIR/dog/001.jpg. Give it with --data DIR, or use --demo for the built-in images."
)


# ---- listing the files ----------------------------------------------------------------------


def is_picture(name: str) -> bool:
    """Whether a '/'-separated name looks like a picture that is not hidden."""
    if not name.lower().endswith(EXTENSIONS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class Search:
    """Says from time to time what a search of folders has seen, and ends one that is hopeless.

    Args:
        root: Where it began.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = 0
        self.pictures = 0
        self._folders = 0
        self._next_report = time.monotonic() + FIRST_REPORT

    def saw_folder(self) -> None:
        """Count a folder; report if it is time to.

        Raises:
            UserError: If next to nothing of what was seen is a picture.
        """
        self._folders += 1
        entries = self.files + self._folders
        if entries >= HOPELESS and self.pictures * HOPELESS_RATIO < entries:
            raise UserError(
                f"{self.root} is not a folder of pictures: {self.seen()}, and the search was ended "
                f"there. {HINT}"
            )
        if time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + NEXT_REPORT
            logger.info("looking for pictures in %s: %s so far", self.root, self.seen())

    def seen(self) -> str:
        """Return what was seen, in words."""
        return f"{self.pictures} pictures among {self.files} files in {self._folders} folders"


def list_folder(root: Path) -> list[str]:
    """List the pictures below a folder.

    Links are followed unless they lead back into a folder that contains them. A search that takes
    long says what it has seen.

    Returns:
        Names relative to `root`, '/'-separated and sorted, so that the order is the same on every
        file system.

    Raises:
        UserError: If a folder cannot be listed; for the root of the file system; and for a tree of
            a million files and folders with hardly any picture.
    """
    if root.resolve() == Path(root.anchor or "/"):
        raise UserError(f"{root} is the root of the file system, not a data set. {HINT}")
    found: list[str] = []
    pending: list[tuple[str, tuple]] = [("", ())]  # a folder, and the identities of those above it
    search = Search(root)
    try:
        while pending:
            folder, above = pending.pop()
            status = os.stat(root / folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            search.saw_folder()
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if not is_folder(entry):
                        search.files += 1
                        if is_picture(name):
                            search.pictures += 1
                            found.append(name)
                    elif not entry.name.startswith("."):
                        pending.append((name, (*above, identity)))
    except OSError as error:
        raise UserError(f"{root} cannot be listed: {error}") from error
    return sorted(found)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def list_zip(path: Path) -> list[str]:
    """List the pictures in a zip, sorted by name.

    Raises:
        UserError: If the archive is broken, holds a name that leads out of it, or holds a member
            that would unpack to an absurd size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged archive may fail in any way
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a readable zip: {reason}. {HINT}") from error
    length = path.stat().st_size
    for member in members:
        _refuse_harmful_member(path, member, length)
    return sorted({member.filename for member in members if is_picture(member.filename)})


def _refuse_harmful_member(path: Path, member: zipfile.ZipInfo, length: int) -> None:
    """Refuse a member of an archive of `length` bytes before any of it is read."""
    name = member.filename
    size = member.file_size
    stored = member.compress_size
    if not 0 <= member.header_offset <= length - stored:
        raise UserError(
            f"{path} is refused: {name!r} would be outside the {length} bytes of the archive, "
            "which is damaged."
        )
    if size > LARGE_MEMBER and size > LARGE_RATIO * stored:
        raise UserError(
            f"{path} is refused: {name!r} unpacks from {stored} to {size} bytes, "
            "which no picture does."
        )
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or ":" in name[:3]:
        raise UserError(f"{path} is refused: the name {name!r} leads out of the archive.")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. A FIFO or a device is not opened, since it could block.

    Raises:
        OSError: If it is something else, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return open(path, "rb")


def training_split(names: list[str]) -> tuple[str, str]:
    """Find the training split among names such as train/cat/1.jpg and val/cat/2.jpg.

    Returns:
        The folder of the split, ending in '/', or '' if there is none; and what to tell, or ''.

    Raises:
        UserError: If there are splits, but none to train on.
    """
    heads = {name.split("/")[0] for name in names if "/" in name}
    splits = {head for head in heads if head.lower() in SPLITS}
    if len(splits) < 2:
        return "", ""
    shown = " and ".join(f"{head}/" for head in sorted(splits))
    for head in sorted(splits):
        holds_classes = any(name.startswith(f"{head}/") and name.count("/") > 1 for name in names)
        if head.lower() in TRAIN and holds_classes:
            return f"{head}/", f"it holds {shown}: the pictures of {head}/ are used"
    if splits == heads and any(name.count("/") > 1 for name in names):
        raise UserError(f"it holds {shown}, which are splits and not classes, and none to train on")
    if splits == heads:
        return "", f"it holds {shown} without folders in them: they are taken for classes"
    return "", ""


def other_contents(place: Path) -> str:
    """Describe what lies in a place without class folders, such as ", 3 .tar files", or ""."""
    if not place.is_dir():
        return ""
    known = (*ARCHIVES, *TABLES, ".npy", ".npz", ".zip")
    endings = Counter(path.suffix.lower() for path in place.iterdir())
    return "".join(
        f", {count} {ending} file{'s' * (count > 1)}"
        for ending, count in endings.most_common()
        if ending in known
    )


def refuse_other_file(place: Path) -> None:
    """Raise UserError for a file that is plainly no zip, and say what to do with it."""
    ending = place.suffix.lower()
    if ending in ARCHIVES:
        advice = f"unpack it, for example by tar -xf {place.name} -C DIR"
    elif ending in TABLES:
        advice = "labels are read from the names of folders, not from a table"
    elif ending in EXTENSIONS:
        advice = "a single picture is no data set"
    else:
        return
    raise UserError(f"{place} is a {ending} file, which is not read: {advice}. {HINT}")


def common_folders(names: list[str]) -> str:
    """Return the folders above the class folders that all names share, ending in '/', or ''."""
    common = ""
    while names:
        rests = [name[len(common) :] for name in names]
        heads = {rest.split("/")[0] for rest in rests}
        if len(heads) > 1 or any(rest.count("/") < 2 for rest in rests):
            break
        common += f"{heads.pop()}/"
    return common


# ---- datasets of picture files --------------------------------------------------------------


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn an image, uint8 [H, W, 3], into a contiguous uint8 tensor [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def is_mirrored(*numbers: int) -> bool:
    """Toss the coin of a mirror flip: a function of the numbers."""
    return bool(np.random.default_rng(numbers).integers(2))


class PictureFiles(Dataset):
    """Base of datasets of picture files, some of which may be unreadable.

    An unreadable file is reported with a warning (`UnreadableSample`), and another picture takes
    its place. An error that may pass (`PASSING`) is tried again first. A subclass implements
    `decode` and `__getitem__`; it may override `substitutes` and `group_name`.

    Args:
        root: Where the files are, for messages and for subclasses.
        names: Name of each file.
        resolution: Side of the images in pixels, at least 8.
        seed: Seed of whatever is drawn for an item.
        max_bad_share: Share of the files that may be unreadable (ten files in any case), counted
            in each process of a job together with its workers.

    Attributes:
        bad: Index -> reason, for the files found unreadable so far.

    Raises:
        ConfigError: If an option is out of its range.
    """

    def __init__(
        self,
        *,
        root: Path,
        names: list[str],
        resolution: int,
        seed: int,
        max_bad_share: float,
    ) -> None:
        owner = type(self).__name__
        self.resolution = integer(f"{owner}.resolution", resolution, least=SMALLEST)
        self.check_options({"seed": seed, "max_bad_share": max_bad_share}, owner)
        self.seed = seed
        self.root = root
        self.names = names
        self.bad: dict[int, str] = {}
        self._problems: dict[int, str] = {}  # that `take_problems` has not returned yet
        self.max_bad = max(ALLOWED_BAD, max_bad_share * len(names))

    @classmethod
    def check_options(cls, options: Mapping[str, Any], where: str) -> None:
        """Refuse a seed or a share that is out of its range. Raises ConfigError."""
        if "seed" in options:
            integer(f"{where}.seed", options["seed"])
        if "max_bad_share" in options:
            probability(f"{where}.max_bad_share", options["max_bad_share"])

    @abstractmethod
    def decode(self, index: int) -> np.ndarray:
        """Return the picture, uint8 [resolution, resolution, 3]. Any exception means that the file
        is unreadable."""

    def substitutes(self, index: int) -> Iterator[int]:
        """Yield the indices of pictures that may replace this one, in order of preference.

        By default all others, from the following one round to the one before.
        """
        count = len(self)
        return (i % count for i in range(index + 1, index + count))

    def group_name(self, index: int) -> str:
        """Describe what the substitutes have in common, for messages: " of ...", or ""."""
        return ""

    def __len__(self) -> int:
        return len(self.names)

    def sample_id(self, index: int) -> str:
        """Return the name of the file."""
        return self.names[index]

    def split_key(self, key: int | tuple[int, int]) -> tuple[int, int]:
        """Return (index, epoch) for a key; the epoch is 0 if the key is an index alone.

        Raises:
            IndexError: If there is no such index.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            owner = type(self).__name__
            raise IndexError(f"{owner}: index {index} is outside 0..{len(self) - 1}")
        return int(index), int(epoch)

    def read(self, index: int) -> tuple[int, np.ndarray]:
        """Decode a picture or, if it is unreadable, the first readable substitute.

        Returns:
            The index that was read, and the picture, uint8 [resolution, resolution, 3].

        Raises:
            UserError: If too many files are unreadable, or no substitute is left.
        """
        for candidate in itertools.chain((index,), self.substitutes(index)):
            if candidate in self.bad:
                continue
            try:
                return candidate, self._decode_patiently(candidate)
            except Exception as error:  # PIL raises many kinds for broken files
                self._set_aside(candidate, error)
        raise UserError(f"{self.root}: no picture{self.group_name(index)} can be read.")

    def _decode_patiently(self, index: int) -> np.ndarray:
        """Decode a picture; after an error that may pass, wait a little and try again."""
        for pause in PAUSES:
            try:
                return self.decode(index)
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                time.sleep(pause)
        return self.decode(index)

    def _set_aside(self, index: int, error: Exception) -> None:
        reason = printable(f"{type(error).__name__}: {error}")
        self.bad[index] = reason
        self._problems[index] = reason
        message = f"{printable(self.names[index])} cannot be read and is left out ({reason})"
        warnings.warn(message, UnreadableSample, stacklevel=3)
        self._refuse_too_many()

    def take_problems(self) -> dict[int, str]:
        """Return and forget index -> reason of the files found unreadable since the last call."""
        problems, self._problems = self._problems, {}
        return problems

    def add_problems(self, problems: Mapping[int, str]) -> None:
        """Count the unreadable files of another process. Raises UserError if there are too many."""
        self.bad.update(problems)
        self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self.bad) > self.max_bad:
            first = list(self.bad.items())[:5]
            shown = "; ".join(f"{printable(self.names[i])} ({why})" for i, why in first)
            raise UserError(
                f"{self.root}: {len(self.bad)} of {len(self)} pictures cannot be read, "
                f"among them {shown}."
            )


class Archive:
    """Reads members of a zip; each process opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: zipfile.ZipFile | None = None
        self._process = -1

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._opened = None
        self._process = -1

    def read(self, name: str) -> bytes:
        """Return the contents of a member."""
        if self._opened is None or self._process != os.getpid():
            self._opened = zipfile.ZipFile(self.path)
            self._process = os.getpid()
        try:
            return self._opened.read(name)
        except OSError:
            self._opened = None  # the next attempt opens it again
            raise


class StoredPictures(PictureFiles):
    """Base of datasets of pictures in a folder or a zip.

    Args:
        place: The folder or the zip.
        names: Name of each picture, relative to `prefix`.
        prefix: Folders above all names, ending in '/', or ''.
        resolution: Side of the images in pixels, at least 8.
        seed: Seed of whatever is drawn for an item.
        max_bad_share: Share of the files that may be unreadable (ten files in any case).
        exact: Whether pictures of another size than resolution x resolution count as unreadable;
            otherwise they are prepared by `adm_center_crop`.
    """

    def __init__(
        self,
        *,
        place: Path,
        names: list[str],
        prefix: str,
        resolution: int,
        seed: int,
        max_bad_share: float,
        exact: bool,
    ) -> None:
        super().__init__(
            root=place,
            names=names,
            resolution=resolution,
            seed=seed,
            max_bad_share=max_bad_share,
        )
        self.prefix = prefix
        self.exact = boolean(f"{type(self).__name__}.exact", exact)
        self._archive = Archive(place) if place.is_file() else None

    def decode(self, index: int) -> np.ndarray:
        """Return the picture, uint8 [resolution, resolution, 3]."""
        with self._open(index) as file, Image.open(file, formats=FORMATS) as image:
            side = self.resolution
            if self.exact and image.size != (side, side):
                width, height = image.size
                raise ValueError(f"it has {width} x {height} pixels, not {side} x {side}")
            return np.asarray(adm_center_crop(to_rgb(image), side))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of a file in pixels. Raises UserError if it cannot be read."""
        try:
            with self._open(index) as file, Image.open(file, formats=FORMATS) as image:
                return image.size
        except Exception as error:  # PIL raises many kinds for broken files
            name = printable(self.names[index])
            reason = printable(f"{type(error).__name__}: {error}")
            raise UserError(f"{self.root}: {name} cannot be read ({reason}).") from error

    def _open(self, index: int) -> BinaryIO:
        name = self.prefix + self.names[index]
        if self._archive is None:
            return open_regular(self.root / name)
        return io.BytesIO(self._archive.read(name))


def list_pictures(root: str) -> tuple[Path, list[str]]:
    """List the pictures below a folder or in a zip.

    Returns:
        The place, and the sorted names.

    Raises:
        UserError: If there is no such folder or zip, or it is refused.
    """
    place = user_path(root, "the images")
    if not place.exists():
        raise UserError(f"there are no images at {place} (looked for a folder or a .zip). {HINT}")
    if not place.is_file():
        return place, list_folder(place)
    refuse_other_file(place)
    return place, list_zip(place)


@DATASETS.register_module()
class FlatImages(StoredPictures):
    """Pictures directly in a folder or a zip, without labels: the caption of each is its name.

    For sets of samples, which have no class folders. An item is `dict(image=uint8 [3, resolution,
    resolution], caption=str, index=int)`.

    Args:
        root: The folder or the zip.
        resolution: Side of the images in pixels.
        exact: Whether pictures of another size count as unreadable; otherwise they are prepared by
            `adm_center_crop`.
        max_bad_share: Share of the files that may be unreadable (ten files in any case).

    Raises:
        UserError: If there is nothing to read at `root`, or if too much of it is unreadable.
        ConfigError: If an option is out of its range.
    """

    captioned = True

    def __init__(
        self,
        *,
        root: str,
        resolution: int = 256,
        exact: bool = False,
        max_bad_share: float = 0.001,
    ) -> None:
        place, found = list_pictures(root)
        names = [name for name in found if "/" not in name]
        if not names:
            raise UserError(f"{place} holds no pictures{other_contents(place)}.")
        super().__init__(
            place=place,
            names=names,
            prefix="",
            resolution=resolution,
            seed=0,
            max_bad_share=max_bad_share,
            exact=exact,
        )

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        asked, _ = self.split_key(key)
        index, image = self.read(asked)
        caption = PurePosixPath(self.names[index]).stem
        return dict(image=to_tensor(image), caption=caption, index=index)


@DATASETS.register_module()
class ImageFolder(StoredPictures):
    """Pictures in class folders, or in a zip of them: `<class>/**/<picture>`.

    Classes are numbered by sorted name. Of a folder that holds train/ and val/, the pictures of
    train/ are used, and `notes` says so. Pictures are prepared by `adm_center_crop`. An item is
    `dict(image=uint8 [3, resolution, resolution], label=int, index=int)`; the key is an index or
    (index, epoch). If no picture of a class can be read, those of other classes take its place.

    Args:
        root: The folder or the zip.
        resolution: Side of the images in pixels.
        flip: Whether to mirror half of the pictures, by a coin of (seed, epoch, index).
        seed: Seed of the flips.
        max_bad_share: Share of the files that may be unreadable (ten files in any case), counted
            in each process.
        exact: Whether pictures of another size than resolution x resolution count as unreadable.

    Raises:
        UserError: If there is nothing to read at `root`, or if too much of it is unreadable.
        ConfigError: If an option is out of its range.
    """

    def __init__(
        self,
        *,
        root: str,
        resolution: int = 256,
        flip: bool = False,
        seed: int = 0,
        max_bad_share: float = 0.001,
        exact: bool = False,
    ) -> None:
        place, found = list_pictures(root)
        prefix = common_folders(found)
        try:
            split, note = training_split([name.removeprefix(prefix) for name in found])
        except UserError as error:
            raise UserError(f"{place} is refused: {error}. {HINT}") from error
        if split:
            found = [name for name in found if name.startswith(prefix + split)]
            prefix = common_folders(found)
        if note:
            self.notes = (f"{place}: {note}",)
        names = [name.removeprefix(prefix) for name in found]
        names_in_classes = [name for name in names if "/" in name]
        if not names_in_classes:
            what = f"{len(names)} pictures but no class folders" if names else "no pictures"
            extensions = ", ".join(EXTENSIONS)
            raise UserError(
                f"{place} holds {what}{other_contents(place)}; <class>/<picture> is expected "
                f"({extensions}). {HINT}"
            )
        super().__init__(
            place=place,
            names=names_in_classes,
            prefix=prefix,
            resolution=resolution,
            seed=seed,
            max_bad_share=max_bad_share,
            exact=exact,
        )
        self.flip = boolean("ImageFolder.flip", flip)
        self.classes = tuple(sorted({self.class_of(i) for i in range(len(self))}))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[self.class_of(i)] for i in range(len(self))]

    def class_of(self, index: int) -> str:
        """Return the name of a picture's class."""
        return self.names[index].split("/")[0]

    def substitutes(self, index: int) -> Iterator[int]:
        """Yield the other pictures of the same class, from the following one, then the others."""
        label = self.labels[index]
        around = super().substitutes
        same = (i for i in around(index) if self.labels[i] == label)
        other = (i for i in around(index) if self.labels[i] != label)
        return itertools.chain(same, other)

    def group_name(self, index: int) -> str:
        """Name the class, for messages."""
        return f" of the class {self.class_of(index)!r}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        asked, epoch = self.split_key(key)
        index, image = self.read(asked)
        if self.labels[index] != self.labels[asked] and asked in self._problems:
            self._problems[asked] += f"; no picture{self.group_name(asked)} can be read"
        if self.flip and is_mirrored(self.seed, epoch, index, FLIP_SALT):
            image = image[:, ::-1]
        return dict(
            image=to_tensor(image),
            label=self.labels[index],
            index=index,
        )
