"""COCO's captions (arXiv:1504.00325) as a dataset: the 2014 folder of images and annotation file, as they are unpacked.

One of an image's captions, of which there are five or a few more, is drawn each time it comes up: a function of (seed,
epoch, index). Pictures are prepared as U-ViT does (`transforms.center_square`), which REPA's text-to-image setting takes
over.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..registry import DATASETS, UserError
from .images import FORMATS, PictureFiles, check_options
from .transforms import center_square, to_rgb

CAPTION_SALT = 0xCA97  # keeps the draws of captions apart from other random streams of the same numbers
HINT = ("Expected are train2014/*.jpg and annotations/captions_train2014.json of cocodataset.org; --data DIR takes the "
        "folder that holds both, --demo the built-in images.")  # fmt: skip


def read_captions(path: Path) -> dict[str, list[str]]:
    """COCO's caption file -> {file name: its captions, in the file's order}, sorted by file name; images without one are
    left out. UserError for a file that is not there, is no JSON or has not COCO's two lists."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise UserError(f"there are no annotations at {path} ({error}). {HINT}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}. {HINT}") from error
    captions: dict[str, list[str]] = {}
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in found["images"]}
        for annotation in found["annotations"]:
            captions.setdefault(names[int(annotation["image_id"])], []).append(str(annotation["caption"]).strip())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not COCO's caption file ({type(error).__name__}: {error}): expected 'images' of id and "
            f"file_name, and 'annotations' of image_id and caption. {HINT}"
        ) from error
    for name in captions:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"{path} names the file {name!r}, which is not one of the image folder; it is refused.")
    if not captions:
        raise UserError(f"{path} holds no captions. {HINT}")
    return dict(sorted(captions.items()))


@DATASETS.register_module()
class CocoCaptions(PictureFiles):
    """COCO's pictures with one of their captions: `images` is the folder, `annotations` the JSON file of captions.

    An item is `dict(image=uint8 [3, resolution, resolution], caption=str, index=int)`; the key is an index or `(index,
    epoch)`, and the caption a draw of (seed, epoch, index). max_bad_share: which share of the files may be missing or
    unreadable (and ten in any case), counted in each process. UserError where the folder or the file is not there or is
    of another shape; ValueError for an option out of its range.
    """

    captioned = True

    def __init__(self, *, images: str, annotations: str, resolution: int = 256, seed: int = 0,
                 max_bad_share: float = 0.001):  # fmt: skip
        check_options("CocoCaptions", resolution=resolution, seed=seed, max_bad_share=max_bad_share)
        root, path = Path(images).expanduser(), Path(annotations).expanduser()
        if not root.is_dir():
            raise UserError(f"there is no folder of images at {root}. {HINT}")
        captions = read_captions(path)
        try:
            there = set(os.listdir(root))
        except OSError as error:
            raise UserError(f"{root} cannot be listed: {error}") from error
        if not there & captions.keys():
            raise UserError(f"{root} holds none of the {len(captions)} images of {path}, such as "
                            f"{next(iter(captions))}. {HINT}")  # fmt: skip
        super().__init__(root=root, names=list(captions), max_bad_share=max_bad_share)
        self.captions = list(captions.values())
        self.resolution, self.seed = int(resolution), int(seed)

    def _decode(self, index) -> np.ndarray:
        """-> uint8 [H, W, 3]."""
        with open(self.root / self.names[index], "rb") as file, Image.open(file, formats=FORMATS) as image:
            return np.asarray(center_square(to_rgb(image), self.resolution))

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, epoch = self._check_index(key)
        index, image = self._readable(index)
        drawn = np.random.default_rng((self.seed, epoch, index, CAPTION_SALT)).integers(len(self.captions[index]))
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return dict(image=pixels, caption=self.captions[index][drawn], index=index)
