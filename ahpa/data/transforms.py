"""From a decoded picture to the square that is trained on: conversion to RGB, and the crops of ADM
and of U-ViT."""

import numpy as np
from PIL import Image

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I")
ALPHA_MODES = ("RGBA", "LA", "PA")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB.

    Takes the first frame of an animation, scales 16-bit gray to 8 bits (PIL would clip it) and puts
    transparent pictures on white. EXIF orientation is not applied, as in the field's loaders.

    Raises:
        ValueError: For pixels of floats or 32-bit integers: nothing says which of their values is
            white, and PIL would clip them to 0..255.
    """
    if image.tell() != 0:
        image.seek(0)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        raise ValueError(
            f"its pixels are {kind}, whose range is not known; convert it to 8 or 16 bits"
        )
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.float64)
        scaled = values.clip(0, 65535) / 257
        image = Image.fromarray(scaled.round().astype(np.uint8))
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def adm_center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Prepare a picture as ADM does (guided-diffusion; also DiT, SiT and REPA).

    Halves it with a box filter while the shorter side is at least twice the resolution, resizes the
    shorter side to the resolution bicubically, and cuts out the centre.

    Args:
        image: A picture of any size.
        resolution: Side of the result in pixels.

    Raises:
        ValueError: If enlarging a thin strip would pass PIL's limit for decompression bombs (at
            256 px: a strip longer than 2,700 times its width).
    """
    while min(image.size) >= 2 * resolution:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, resample=Image.Resampling.BOX)
    scale = resolution / min(image.size)
    width = round(image.width * scale)
    height = round(image.height * scale)
    limit = Image.MAX_IMAGE_PIXELS
    if (
        limit and width * height > 2 * limit
    ):  # PIL warns above the limit and refuses above twice that
        raise ValueError(
            f"a strip of {image.width} x {image.height} pixels would be enlarged "
            f"to {width} x {height}"
        )
    image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    left = (width - resolution) // 2
    top = (height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def center_square(image: Image.Image, resolution: int) -> Image.Image:
    """Prepare a picture as U-ViT does for COCO (arXiv:2209.12152), and REPA for text to image.

    Cuts out the centre square of the shorter side and resizes it once with the Lanczos filter.

    Args:
        image: A picture of any size.
        resolution: Side of the result in pixels.
    """
    side = min(image.size)
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), resample=Image.Resampling.LANCZOS)
