"""Grids and folders of PNGs; each file is written complete or not at all."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..registry import UserError
from ..registry.files import write_file
from ..registry.validation import positive_int

GAP = 2  # pixels between the pictures of a grid
LONGEST = 48  # characters of a caption; a longer one is cut
LETTER = 6  # pixels per character of PIL's built-in font


def shorten(caption: str) -> str:
    """Cut a caption to `LONGEST` characters of those that PIL's built-in font has."""
    cut = caption if len(caption) <= LONGEST else f"{caption[: LONGEST - 3]}..."
    return cut.encode("latin-1", "replace").decode("latin-1")


def make_grid(
    images: Tensor, *, columns: int, captions: Sequence[str] | None = None
) -> Image.Image:
    """Arrange images in rows.

    Args:
        images: uint8 [n, 3, H, W].
        columns: Images per row.
        captions: One per row, written to the left of it.

    Raises:
        UserError: If there are no images, or if they are not uint8 [n, 3, H, W].
    """
    positive_int("columns", columns)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        shape = tuple(images.shape)
        raise UserError(f"images: must be uint8 [n, 3, H, W], got {images.dtype} {shape}.")
    captions = [shorten(caption) for caption in captions or ()]
    count, _, height, width = images.shape
    rows = -(-count // columns)
    longest = max((len(caption) for caption in captions), default=0)
    margin = LETTER * longest + 8 if captions else 0
    size = (margin + columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    page = Image.new("RGB", size, "white")
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(number, columns)
        place = (margin + GAP + column * (width + GAP), GAP + row * (height + GAP))
        page.paste(Image.fromarray(image), place)
    draw = ImageDraw.Draw(page)
    for row, caption in enumerate(captions):
        draw.text((4, GAP + row * (height + GAP) + height // 2 - 6), caption, fill="black")
    return page


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(
    images: Tensor, path: Path, *, columns: int, captions: Sequence[str] | None = None
) -> None:
    """Write a grid of images as PNG; see `make_grid`. Raises UserError if it cannot be written."""
    write_file(Path(path), encode_png(make_grid(images, columns=columns, captions=captions)))


def save_pngs(
    batches: Iterable[Tensor],
    labels: Sequence[int],
    folder: Path,
    *,
    prompts: Sequence[str] | None = None,
) -> None:
    """Write one PNG per image, named after its number and class.

    Args:
        batches: uint8 [b, 3, H, W] each.
        labels: Class of each image, or the number of its prompt.
        folder: Where to write them.
        prompts: The prompts that `labels` number; written to prompts.json.
    """
    kind = "class" if prompts is None else "prompt"
    folder = Path(folder)
    if prompts is not None:
        write_file(folder / "prompts.json", json.dumps(list(prompts), indent=1).encode() + b"\n")
    images = (image for batch in batches for image in batch.permute(0, 2, 3, 1).contiguous())
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{number:06d}_{kind}{label:04d}.png"
        write_file(folder / name, encode_png(Image.fromarray(image.numpy())))
