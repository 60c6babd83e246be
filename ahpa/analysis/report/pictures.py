"""Pictures of runs, made small enough for one page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from .html import data_uri
from .runs import LoggedRun, read_bytes

LONGEST_GRID = 720  # pixels
LONGEST_PICTURE = 1600
LARGEST = 160_000  # bytes of a PNG; a larger one becomes a JPEG
LARGEST_SVG = 600_000
MOST_PIXELS = 64_000_000


def embed(path: Path, longest: int = LONGEST_GRID) -> tuple[str, int, int] | None:
    """Return a picture as a data URI, and its width and height; None if it cannot be read.

    Args:
        path: A picture of any kind that Pillow reads.
        longest: Longest side in pixels; a larger picture is shrunk.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return None
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    kind = "image/png"
    if len(buffer.getvalue()) > LARGEST:
        buffer, kind = io.BytesIO(), "image/jpeg"
        image.save(buffer, "JPEG", quality=85, optimize=True)
    return data_uri(buffer.getvalue(), kind), image.width, image.height


def embed_analysis(path: Path) -> str | None:
    """Return the picture of an analysis as a data URI: the SVG, or the PNG if that is large.

    Args:
        path: The analysis; .svg and .png lie beside it. In an <img> an SVG runs no script and
            loads nothing.
    """
    drawn = read_bytes(path.with_suffix(".svg"), most=LARGEST_SVG)
    if drawn is not None:
        return data_uri(drawn, "image/svg+xml")
    found = embed(path.with_suffix(".png"), LONGEST_PICTURE)
    return found[0] if found else None


def chosen_steps(grids: Sequence[Mapping[int, Path]], most: int) -> list[int]:
    """Choose up to `most` iterations that all runs have, evenly spread, with the last one.

    Args:
        grids: {iteration: picture} of each run.
        most: Largest number of iterations.
    """
    shared = sorted(set.intersection(*(set(own) for own in grids))) if grids else []
    if len(shared) <= most:
        return shared
    if most == 1:
        return shared[-1:]
    return [shared[round(i * (len(shared) - 1) / (most - 1))] for i in range(most)]


def with_grids(runs: Sequence[LoggedRun]) -> LoggedRun | None:
    """Return the first run that has grids of samples; None if none has."""
    return next((run for run in runs if run.grids), None)
