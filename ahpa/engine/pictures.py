"""PNG grids and the field's sample archives, written whole or not at all."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .checkpoint import write_file

GAP = 2  # pixels between the pictures of a grid
LONGEST = 48  # letters of a caption; a longer one is cut
LETTER = 6  # pixels a letter of PIL's built-in font takes


def shortened(caption: str) -> str:
    """At most LONGEST letters, of those that PIL's built-in font has."""
    cut = caption if len(caption) <= LONGEST else f"{caption[: LONGEST - 3]}..."
    return cut.encode("latin-1", "replace").decode("latin-1")


def grid(images: Tensor, *, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """uint8 [n, 3, H, W] -> one picture with `columns` a row; `captions` stand left of the rows."""
    captions = [shortened(caption) for caption in captions or ()]
    count, _, height, width = images.shape
    rows = -(-count // columns)
    margin = LETTER * max(len(caption) for caption in captions) + 8 if captions else 0
    page = Image.new("RGB", (margin + columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(i, columns)
        page.paste(Image.fromarray(image), (margin + GAP + column * (width + GAP), GAP + row * (height + GAP)))
    draw = ImageDraw.Draw(page)
    for row, caption in enumerate(captions):
        draw.text((4, GAP + row * (height + GAP) + height // 2 - 6), caption, fill="black")
    return page


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(images: Tensor, path: Path, **options) -> None:
    write_file(Path(path), encode_png(grid(images, **options)))


def save_pngs(batches: Iterable[Tensor], labels: Sequence[int], folder: Path, *, prompts=None) -> None:
    """One PNG an image, named after its number and class; or its prompt's number, with prompts.json, their list."""
    kind = "class" if prompts is None else "prompt"
    if prompts is not None:
        write_file(Path(folder) / "prompts.json", (json.dumps(prompts, indent=1) + "\n").encode())
    images = (image for batch in batches for image in batch.permute(0, 2, 3, 1).contiguous().numpy())
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_file(Path(folder) / f"{number:06d}_{kind}{label:04d}.png", encode_png(Image.fromarray(image)))


def save_npz(images: Sequence[Tensor], labels: Sequence[int], path: Path, *, prompts=None) -> None:
    """The ADM evaluator's archive: arr_0 uint8 [n, H, W, 3] (and arr_1, the labels [n] int64; with `prompts`, which
    these number, their list as a third array of that name)."""
    buffer, named = io.BytesIO(), {} if prompts is None else {"prompts": np.asarray(prompts)}
    arrays = torch.cat(list(images)).permute(0, 2, 3, 1).contiguous().numpy(), np.asarray(labels, np.int64)
    np.savez(buffer, *arrays, **named)
    write_file(Path(path), buffer.getbuffer())
