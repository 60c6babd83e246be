"""COCO's captions (arXiv:1504.00325) as a dataset: the 2014 image folder and annotation file,
read as they are unpacked."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..registry import DATASETS, UserError
from ..registry.files import read_json, user_path
from .images import FORMATS, PictureFiles, open_regular, to_tensor
from .transforms import center_square, to_rgb

CAPTION_SALT = (
    0xCA97  # separates the draws of captions from other random streams of the same numbers
)
LARGEST = 4 << 30  # bytes of an annotation file; COCO's own have 66 MB
HINT = (
    "Expected are train2014/*.jpg and annotations/captions_train2014.json from cocodataset.org; "
    "--data DIR takes the folder that holds both, --demo uses the built-in images."
)


def read_captions(path: Path) -> dict[str, list[str]]:
    """Read COCO's caption file.

    Returns:
        {file name: its captions in the file's order}, sorted by file name; images without captions
        are left out.

    Raises:
        UserError: If the file is missing, is not JSON or does not have COCO's two lists, or if it
            names a file outside the image folder.
    """
    if not path.is_file():
        raise UserError(f"there are no annotations at {path}. {HINT}")
    try:
        found = read_json(path, str(path.parent), most=LARGEST)
    except UserError as error:
        raise UserError(f"{error} {HINT}") from error
    captions: dict[str, list[str]] = {}
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in found["images"]}
        for annotation in found["annotations"]:
            name = names[int(annotation["image_id"])]
            captions.setdefault(name, []).append(str(annotation["caption"]).strip())
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is not COCO's caption file ({type(error).__name__}: {error}): expected "
            "'images' with id and file_name, and 'annotations' with image_id and caption. "
            f"{HINT}"
        ) from error
    for name in captions:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"{path} is refused: {name!r} is not a file of the image folder.")
    if not captions:
        raise UserError(f"{path} holds no captions. {HINT}")
    return dict(sorted(captions.items()))


@DATASETS.register_module()
class CocoCaptions(PictureFiles):
    """COCO's pictures, each with one of its captions, of which there are five or a few more.

    Pictures are prepared by `center_square`. An item is `dict(image=uint8 [3, resolution,
    resolution], caption=str, index=int)`; the key is an index or (index, epoch), and the caption is
    drawn by (seed, epoch, index).

    Args:
        images: Folder of the pictures.
        annotations: JSON file of the captions.
        resolution: Side of the images in pixels.
        seed: Seed of the draws of captions.
        max_bad_share: Share of the files that may be missing or unreadable (ten files in any case),
            counted in each process.

    Raises:
        UserError: If the folder or the file is missing or is not COCO's.
        ConfigError: If an option is out of its range.
    """

    captioned = True

    def __init__(
        self,
        *,
        images: str,
        annotations: str,
        resolution: int = 256,
        seed: int = 0,
        max_bad_share: float = 0.001,
    ) -> None:
        root = user_path(images, "the images")
        path = user_path(annotations, "the annotations")
        if not root.is_dir():
            raise UserError(f"there is no folder of images at {root}. {HINT}")
        captions = read_captions(path)
        _refuse_other_folder(root, path, captions)
        super().__init__(
            root=root,
            names=list(captions),
            resolution=resolution,
            seed=seed,
            max_bad_share=max_bad_share,
        )
        self.captions = list(captions.values())

    def decode(self, index: int) -> np.ndarray:
        """Return the picture, uint8 [resolution, resolution, 3]."""
        path = self.root / self.names[index]
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            return np.asarray(center_square(to_rgb(image), self.resolution))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, epoch = self.split_key(key)
        index, image = self.read(index)
        captions = self.captions[index]
        rng = np.random.default_rng((self.seed, epoch, index, CAPTION_SALT))
        caption = captions[rng.integers(len(captions))]
        return dict(image=to_tensor(image), caption=caption, index=index)


def _refuse_other_folder(root: Path, path: Path, captions: dict[str, list[str]]) -> None:
    try:
        present = set(os.listdir(root))
    except OSError as error:
        raise UserError(f"{root} cannot be listed: {error}") from error
    if not present & captions.keys():
        raise UserError(
            f"{root} holds none of the {len(captions)} images of {path}, such as "
            f"{next(iter(captions))}. {HINT}"
        )
