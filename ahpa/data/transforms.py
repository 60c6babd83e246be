"""From a decoded picture to the square that is trained on: ADM's or U-ViT's crop, and a faithful conversion to RGB."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: the first frame of an animation; 16-bit gray scaled to 8 bits (PIL would clip it); transparency
    over white. EXIF orientation is not applied, as in the field's loaders."""
    if getattr(image, "is_animated", False):
        image.seek(0)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def adm_center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """ADM's preprocessing: halve with a box filter while the shorter side is at least twice the resolution, resize it
    to the resolution bicubically, cut out the centre (guided-diffusion; DiT, SiT and REPA do the same).

    ValueError for a strip so thin that enlarging it would pass PIL's limit for decompression bombs (at 256 pixels:
    longer than 2,700 times its width)."""
    while min(image.size) >= 2 * resolution:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = resolution / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:  # PIL warns at one, refuses at two
        raise ValueError(f"a strip of {image.width} x {image.height} pixels would be enlarged to {width} x {height}")
    image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    left, top = ((side - resolution) // 2 for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))


def center_square(image: Image.Image, resolution: int) -> Image.Image:
    """U-ViT's preprocessing of COCO (arXiv:2209.12152; REPA's text-to-image setting takes it over): the centre square of
    the shorter side, then one resize to the resolution with the Lanczos filter."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), resample=Image.Resampling.LANCZOS)
