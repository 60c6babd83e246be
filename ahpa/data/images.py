"""Class folders, or a zip of them, as a dataset: names -> labels, ADM's crop, an optional mirror.

Files that are no picture are put aside with path and reason, and another picture of the same class takes the place; the
run stops when there are too many. Nothing is unpacked, and nothing outside the given root is read.
"""

import io
import itertools
import os
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from ..registry import DATASETS, UserError
from .transforms import adm_center_crop, to_rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # whatever a name says; others (EPS runs Ghostscript) stay shut
LARGE_MEMBER, LARGE_RATIO = 64 << 20, 100  # a zip member above both, in bytes and in bytes per stored byte, is a bomb
ALLOWED_BAD = 10  # files that may be bad however small the set is
FLIP_SALT = 0xF11B  # keeps the flip coins apart from other random streams of the same numbers
HINT = "Give a folder or zip of class folders with --data DIR, or use --demo for the built-in images."


def is_picture(name: str) -> bool:
    if not name.lower().endswith(EXTENSIONS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def list_folder(root: Path) -> list[str]:
    """Names of the pictures below `root`, relative and with '/', sorted: the same on every file system. Links are
    followed, but not back into a folder that they lie in. UserError for a folder that cannot be listed."""
    found, open_folders = [], [("", ())]  # a folder and the identities of those above it
    try:
        while open_folders:
            folder, above = open_folders.pop()
            stat = os.stat(root / folder)
            if (stat.st_dev, stat.st_ino) in above:
                continue
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        if not entry.name.startswith("."):
                            open_folders.append((name, (*above, (stat.st_dev, stat.st_ino))))
                    elif is_picture(name):
                        found.append(name)
    except OSError as error:
        raise UserError(f"{root} cannot be listed: {error}") from error
    return sorted(found)


def list_zip(path: Path) -> list[str]:
    """Names of the pictures in a zip, sorted. UserError for a broken archive, a name that leads out of it, a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:  # RuntimeError: a version that zipfile cannot read
        raise UserError(f"{path} is no readable zip: {error}") from error
    for member in members:
        name, size, stored = member.filename, member.file_size, member.compress_size
        if size > LARGE_MEMBER and size > LARGE_RATIO * stored:
            raise UserError(f"{path} holds {name!r}, {size} bytes packed into {stored}: no picture; it is refused.")
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or ":" in name[:3]:
            raise UserError(f"{path} holds the name {name!r}, which leads out of the archive; it is refused.")
    return sorted({member.filename for member in members if is_picture(member.filename)})


def strip_common(names: list[str]) -> str:
    """The folders that all names share above their class folder, with a trailing '/', or ''."""
    common = ""
    while names:
        heads = {name[len(common) :].split("/")[0] for name in names}
        deep = all(name[len(common) :].count("/") >= 2 for name in names)
        if len(heads) > 1 or not deep:
            return common
        common += f"{heads.pop()}/"
    return common


class PictureFiles(torch.utils.data.Dataset):
    """Pictures by name below `root`, of which some may be bad: these are put aside, and others take their place.

    A data set of them defines `_decode(index)`, `_others(index)` and `_kind(index)`. max_bad_share: which share of the
    files may be unreadable (and ten in any case), counted in each process.
    """

    def __init__(self, *, root: Path, names: list[str], max_bad_share: float):
        self.root, self.names = root, names
        self.bad: dict[int, str] = {}
        self.max_bad = max(ALLOWED_BAD, max_bad_share * len(names))

    def _decode(self, index: int) -> np.ndarray:
        """-> uint8 [H, W, 3]; any exception means that the file is bad."""
        raise TypeError(f"{type(self).__name__} must define _decode(index)")

    def _others(self, index: int):
        """The indices of those that may take its place, in order: here all that follow, round to the one before."""
        count = len(self)
        return (i % count for i in range(index + 1, index + count))

    def _kind(self, index: int) -> str:
        """What the pictures of `_others` have in common, for a message; '' where nothing."""
        return ""

    def __len__(self) -> int:
        return len(self.names)

    def sample_id(self, index: int) -> str:
        return self.names[index]

    def _check_index(self, key: int | tuple[int, int]) -> tuple[int, int]:
        """-> (index, epoch). IndexError outside the set."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} is outside 0..{len(self) - 1}")
        return int(index), int(epoch)

    def _put_aside(self, index, error):
        reason = f"{type(error).__name__}: {error}"
        self.bad[index] = reason
        warnings.warn(f"{self.names[index]} cannot be read and is left out ({reason})", RuntimeWarning, stacklevel=3)
        if len(self.bad) > self.max_bad:
            shown = "; ".join(f"{self.names[i]} ({why})" for i, why in list(self.bad.items())[:5])
            raise UserError(f"{self.root}: {len(self.bad)} of {len(self)} pictures cannot be read, among them {shown}.")

    def _readable(self, index) -> tuple[int, np.ndarray]:
        """The picture, or the next of its kind that can be read."""
        for candidate in itertools.chain((index,), self._others(index)):
            if candidate not in self.bad:
                try:
                    return candidate, self._decode(candidate)
                except Exception as error:  # PIL raises many kinds for broken files
                    self._put_aside(candidate, error)
        raise UserError(f"{self.root}: no picture{self._kind(index)} can be read.")


def check_options(owner: str, *, resolution, seed, max_bad_share) -> None:
    """ValueError for an option of a picture set that is out of its range."""
    for name, value, least in (("resolution", resolution, 8), ("seed", seed, 0)):
        if value != int(value) or value < least:
            raise ValueError(f"{owner}: {name} must be a whole number of at least {least}, got {value!r}.")
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"{owner}: max_bad_share is a share, between 0 and 1, got {max_bad_share!r}.")


@DATASETS.register_module()
class ImageFolder(PictureFiles):
    """Pictures in class folders, or in a zip of them: `<class>/**/<picture>`; classes are numbered by sorted name.

    An item is `dict(image=uint8 [3, resolution, resolution], label=int, index=int)`; the key is an index or
    `(index, epoch)`. flip mirrors half of them, a coin of (seed, epoch, index). max_bad_share: which share of the files
    may be unreadable (and ten in any case), counted in each process. UserError where there is nothing to read, or too
    much that is bad; ValueError for an option out of its range.
    """

    captioned = False

    def __init__(self, *, root: str, resolution: int = 256, flip: bool = False, seed: int = 0,
                 max_bad_share: float = 0.001):  # fmt: skip
        check_options("ImageFolder", resolution=resolution, seed=seed, max_bad_share=max_bad_share)
        self.resolution, self.flip, self.seed = int(resolution), bool(flip), int(seed)
        place = Path(root).expanduser()
        if not place.exists():
            raise UserError(f"there are no images at {place} (looked for a folder or a .zip). {HINT}")
        self.zipped = place.is_file()
        names = list_zip(place) if self.zipped else list_folder(place)
        self.prefix = strip_common(names)
        names = [name[len(self.prefix) :] for name in names]
        loose = [name for name in names if "/" not in name]
        if not names or len(loose) == len(names):
            what = f"{len(loose)} pictures but no class folders" if loose else "no pictures"
            raise UserError(f"{place} holds {what}; <class>/<picture> is expected ({', '.join(EXTENSIONS)}). {HINT}")
        super().__init__(root=place, names=[name for name in names if "/" in name], max_bad_share=max_bad_share)
        self.classes = tuple(sorted({name.split("/")[0] for name in self.names}))
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = [number[name.split("/")[0]] for name in self.names]
        self._archive, self._owner = None, None

    def __getstate__(self):
        return {**self.__dict__, "_archive": None, "_owner": None}  # each process opens the zip itself

    def _open(self, index):
        """The picture's file, for reading; a member of a zip is read at once, its size was checked."""
        name = self.prefix + self.names[index]
        if not self.zipped:
            return open(self.root / name, "rb")
        if self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.root), os.getpid()
        return io.BytesIO(self._archive.read(name))

    def _decode(self, index) -> np.ndarray:
        """-> uint8 [H, W, 3]."""
        with self._open(index) as file, Image.open(file, formats=FORMATS) as image:
            return np.asarray(adm_center_crop(to_rgb(image), self.resolution))

    def _others(self, index):
        """The following pictures of the same class."""
        return (i for i in super()._others(index) if self.labels[i] == self.labels[index])

    def _kind(self, index) -> str:
        return f" of the class {self.names[index].split('/')[0]!r}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, epoch = self._check_index(key)
        index, image = self._readable(index)
        if self.flip and np.random.default_rng((self.seed, epoch, index, FLIP_SALT)).integers(2):
            image = image[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return dict(image=pixels, label=self.labels[index], index=index)
