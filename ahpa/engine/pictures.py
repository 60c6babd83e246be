"""PNG grids and the field's sample archives, written whole or not at all."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .checkpoint import write_file

GAP = 2  # pixels between the pictures of a grid
LETTER = 6  # pixels a letter of PIL's built-in font takes


def grid(images: Tensor, *, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """uint8 [n, 3, H, W] -> one picture with `columns` a row; `captions` stand left of the rows."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    margin = LETTER * max(len(caption) for caption in captions) + 8 if captions else 0
    page = Image.new("RGB", (margin + columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(i, columns)
        page.paste(Image.fromarray(image), (margin + GAP + column * (width + GAP), GAP + row * (height + GAP)))
    draw = ImageDraw.Draw(page)
    for row, caption in enumerate(captions or ()):
        draw.text((4, GAP + row * (height + GAP) + height // 2 - 6), caption, fill="black")
    return page


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(images: Tensor, path: Path, **options) -> None:
    write_file(Path(path), encode_png(grid(images, **options)))


def save_pngs(batches: Iterable[Tensor], labels: Sequence[int], folder: Path) -> None:
    """One PNG an image, named after its number and class."""
    images = (image for batch in batches for image in batch.permute(0, 2, 3, 1).contiguous().numpy())
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_file(Path(folder) / f"{number:06d}_class{label:04d}.png", encode_png(Image.fromarray(image)))


def save_npz(images: Sequence[Tensor], labels: Sequence[int], path: Path) -> None:
    """The ADM evaluator's archive: arr_0 uint8 [n, H, W, 3] (and arr_1, the labels [n] int64)."""
    buffer = io.BytesIO()
    np.savez(buffer, torch.cat(list(images)).permute(0, 2, 3, 1).contiguous().numpy(), np.asarray(labels, np.int64))
    write_file(Path(path), buffer.getbuffer())
