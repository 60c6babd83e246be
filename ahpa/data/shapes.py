"""The built-in image set: ten classes of drawn objects on textured grounds, computed, never stored.

It lets every command of the project run without a download, at any resolution and length. A
picture is a function of (seed, index) alone, and `label = index % 10`. Each class is a silhouette
given as a signed distance function (negative inside), so that its edges are anti-aliased at any
resolution, and most have an inner part (an eye, a door, a trunk) in another colour. Position,
scale, rotation, colours and both textures are random; the hue of an object is drawn from a range
of its class, while the ground's hue is free.

Conventions: the picture spans [-1, 1] in both axes and y points down; H = W = resolution; a field
is [H, W] float32; p = (x, y) are two fields of coordinates in the object's own frame, in which the
object fills about [-1, 1].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..registry import DATASETS
from ..registry.contracts import Dataset
from ..registry.validation import boolean, integer, positive_int
from .images import SMALLEST, is_mirrored, to_tensor

Field = np.ndarray
Frame = tuple[Field, Field]
Point = tuple[float, float]
Colour = np.ndarray  # RGB in [0, 1], float32 [3]
Drawing = tuple[Field, Field | np.float32]  # silhouette, and inner part or NOTHING

CLASSES = (
    "star",
    "heart",
    "ring",
    "moon",
    "cross",
    "flower",
    "fish",
    "tree",
    "house",
    "mushroom",
)
HUES = {
    "star": 0.14,
    "heart": 0.96,
    "ring": 0.65,
    "moon": 0.75,
    "cross": 0.45,
    "flower": 0.86,
    "fish": 0.55,
    "tree": 0.33,
    "house": 0.07,
    "mushroom": 0.01,
}
"""Centre of each class's range on the colour wheel: 0 is red, 1/3 green, 2/3 blue."""
HUE_SPREAD = 0.05  # half the width of that range
COLOURS = (
    ("red", 0.04),
    ("orange", 0.11),
    ("yellow", 0.2),
    ("green", 0.42),
    ("teal", 0.54),
    ("blue", 0.7),
    ("purple", 0.83),
    ("pink", 0.95),
    ("red", 1.0),
)
"""Names of hues for captions, each with the hue at which it ends."""
OUTLINE = 0.05  # width of the dark or light line around an object, as a share of half the picture
FLIP_SALT = 0x5EED  # separates the mirror flips from the pictures' own random streams
NOTHING = np.float32(9.0)  # a distance outside of every picture: there is no inner part


# ---- signed distances -----------------------------------------------------------------------


def _circle(p: Frame, cx: float, cy: float, radius: float) -> Field:
    return np.hypot(p[0] - cx, p[1] - cy) - radius


def _ellipse(
    p: Frame,
    cx: float,
    cy: float,
    rx: float,
    ry: float,
) -> Field:
    """Exact on the border, scaled by the smaller radius elsewhere: enough for an edge."""
    x = (p[0] - cx) / rx
    y = (p[1] - cy) / ry
    return (np.hypot(x, y) - 1) * min(rx, ry)


def _box(
    p: Frame,
    cx: float,
    cy: float,
    half_x: float,
    half_y: float,
) -> Field:
    dx = np.abs(p[0] - cx) - half_x
    dy = np.abs(p[1] - cy) - half_y
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    inside = np.minimum(np.maximum(dx, dy), 0)
    return outside + inside


def _polygon(p: Frame, corners: list[Point]) -> Field:
    """Distance to the nearest edge, negative where a ray crosses an odd number of edges."""
    x, y = p
    squared = np.full(x.shape, NOTHING**2)
    inside = np.zeros(x.shape, bool)
    ends = corners[1:] + corners[:1]
    for (ax, ay), (bx, by) in zip(corners, ends, strict=True):
        ex, ey = bx - ax, by - ay
        qx, qy = x - ax, y - ay
        projection = qx * ex + qy * ey
        along = np.clip(projection / (ex * ex + ey * ey), 0, 1)
        dx = qx - along * ex
        dy = qy - along * ey
        squared = np.minimum(squared, dx**2 + dy**2)
        if ay != by:
            crosses = (y >= ay) != (y >= by)
            inside ^= crosses & (qx < qy * (ex / ey))
    sign = np.where(inside, -1, 1).astype(np.float32)
    return sign * np.sqrt(squared)


# ---- the ten objects ------------------------------------------------------------------------


def _star(p: Frame) -> Drawing:
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.45, 1.05)
    xs = (radii * np.sin(angles)).tolist()
    ys = (0.08 - radii * np.cos(angles)).tolist()
    return _polygon(p, list(zip(xs, ys, strict=True))), NOTHING


def _heart(p: Frame) -> Drawing:
    x, y = np.abs(p[0]), p[1]
    lobe = np.hypot(x - 0.44, y + 0.38) - 0.5
    corners = [
        (-0.3, -0.42),
        (0.44, -0.42),
        (0.85, -0.1),
        (0.0, 0.95),
        (-0.3, 0.6),
    ]
    tip = _polygon((x, y), corners)
    return np.minimum(lobe, tip), NOTHING


def _ring(p: Frame) -> Drawing:
    return np.abs(_circle(p, 0, 0, 0.68)) - 0.25, NOTHING


def _moon(p: Frame) -> Drawing:
    full = _circle(p, 0, 0, 0.95)
    shadow = _circle(p, 0.5, -0.12, 0.76)
    return np.maximum(full, -shadow), NOTHING


def _cross(p: Frame) -> Drawing:
    across = _box(p, 0, 0, 0.92, 0.3)
    down = _box(p, 0, 0, 0.3, 0.92)
    return np.minimum(across, down), NOTHING


def _flower(p: Frame) -> Drawing:
    angle = np.arctan2(p[0], -p[1])
    radius = np.hypot(*p)
    sector = np.pi / 3  # six petals: fold the plane onto one of them
    turn = np.mod(angle + np.pi / 6, sector) - np.pi / 6
    petal = _circle((radius * np.sin(turn), radius * np.cos(turn)), 0, 0.62, 0.35)
    return np.minimum(petal, radius - 0.5), radius - 0.32


def _fish(p: Frame) -> Drawing:
    body = _ellipse(p, -0.18, 0, 0.76, 0.52)
    corners = [
        (0.35, 0.0),
        (0.98, -0.52),
        (0.82, 0.0),
        (0.98, 0.52),
    ]
    tail = _polygon(p, corners)
    eye = _circle(p, -0.55, -0.13, 0.12)
    return np.minimum(body, tail), eye


def _tree(p: Frame) -> Drawing:
    right = [
        (0.5, -0.4),
        (0.3, -0.4),
        (0.72, 0.1),
        (0.4, 0.1),
        (0.85, 0.62),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    crown = _polygon(p, [(0, -1.05), *right, *left])
    trunk = _box(p, 0, 0.8, 0.16, 0.2)
    return np.minimum(crown, trunk), trunk


def _house(p: Frame) -> Drawing:
    gable = [
        (0, -0.98),
        (0.98, -0.12),
        (-0.98, -0.12),
    ]
    roof = _polygon(p, gable)
    walls = _box(p, 0, 0.35, 0.74, 0.55)
    door = _box(p, -0.3, 0.56, 0.18, 0.34)
    window = _box(p, 0.32, 0.32, 0.19, 0.19)
    return np.minimum(roof, walls), np.minimum(door, window)


def _mushroom(p: Frame) -> Drawing:
    cap = np.maximum(_ellipse(p, 0, 0, 0.98, 0.88), p[1] - 0.08)
    stem = _box(p, 0, 0.46, 0.25, 0.42)
    left = _circle(p, -0.5, -0.22, 0.17)
    middle = _circle(p, 0.06, -0.52, 0.17)
    right = _circle(p, 0.52, -0.18, 0.15)
    spots = np.minimum(np.minimum(left, middle), right)
    visible_stem = np.maximum(stem, 0.08 - p[1])
    return np.minimum(cap, stem), np.minimum(visible_stem, spots)


OBJECTS: dict[str, Callable[[Frame], Drawing]] = {
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
    "cross": _cross,
    "flower": _flower,
    "fish": _fish,
    "tree": _tree,
    "house": _house,
    "mushroom": _mushroom,
}
"""Each class's (silhouette, inner part) as fields of signed distances."""


# ---- colours and textures -------------------------------------------------------------------


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """Convert HSV in [0, 1] (the hue wraps) to RGB."""
    k = (np.array((5.0, 3.0, 1.0)) + 6 * hue) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value * (1 - saturation * ramp)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _grid(resolution: int) -> Frame:
    """Return the pixel centres (x, y), each [H, W] in [-1, 1]."""
    centres = (np.arange(resolution, dtype=np.float32) + 0.5) * 2 / resolution - 1
    axis = centres.astype(np.float32)
    square = (resolution, resolution)
    x = np.broadcast_to(axis, square)
    y = np.broadcast_to(axis[:, None], square)
    return x, y


@functools.lru_cache(maxsize=64)
def _spread(cells: int, resolution: int) -> Field:
    """Return the matrix [H, cells] that interpolates `cells` equidistant values smoothly."""
    centres = (np.arange(resolution) + 0.5) / resolution
    position = centres * (cells - 1)
    low = np.minimum(position.astype(int), cells - 2)
    offset = position - low
    share = offset**2 * (3 - 2 * offset)
    rows = np.arange(resolution)
    out = np.zeros((resolution, cells), np.float32)
    out[rows, low] = 1 - share
    out[rows, low + 1] = share
    return out


def _pattern(rng: np.random.Generator, resolution: int) -> Field:
    """Draw a random field in [0, 1]: a gradient, wide bands or clouds, each a third of the time."""
    kind = rng.integers(3)
    angle = rng.uniform(0, 2 * np.pi)
    period = rng.uniform(0.8, 1.6)
    shift = rng.uniform(0, 2 * np.pi)
    cells = int(rng.integers(3, 6))
    noise = rng.random((5, 5), dtype=np.float32)
    if kind == 2:
        spread = _spread(cells, resolution)
        return spread @ noise[:cells, :cells] @ spread.T
    x, y = _grid(resolution)
    cos = np.float32(np.cos(angle))
    sin = np.float32(np.sin(angle))
    along = x * cos + y * sin
    if kind == 0:
        return np.clip(0.5 + 0.4 * along, 0, 1)
    frequency = np.float32(2 * np.pi / period)
    phase = along * frequency + np.float32(shift)
    return 0.5 + 0.5 * np.sin(phase)


def _paint(
    rng: np.random.Generator,
    resolution: int,
    first: Colour,
    second: Colour,
) -> np.ndarray:
    """Mix two colours by a random pattern -> [H, W, 3]."""
    share = _pattern(rng, resolution)[..., None]
    return first + share * (second - first)


def _cover(distance: Field | np.float32, resolution: int) -> np.ndarray:
    """Return the share of each pixel that lies inside, [H, W, 1]: a ramp of one pixel's width."""
    ramp = 0.5 - distance * (resolution / 2)
    return np.clip(ramp, 0, 1)[..., None]


# ---- one picture ----------------------------------------------------------------------------


class Facts(NamedTuple):
    """What is drawn before any pixel: the object's frame, and the colours.

    Attributes:
        scale: Size of the object.
        angle: Its rotation in radians.
        centre: Its place (x, y), float32 [2].
        hue: Its hue.
        ground_hue: Hue of the ground.
        near: How gray the first colours are, in [0, 1).
        far: How gray the second colours are, in [0, 1).
        light: Whether a deep object is on a light ground, or else a bright one on a dark ground.
    """

    scale: np.float32
    angle: float
    centre: np.ndarray
    hue: float
    ground_hue: float
    near: float
    far: float
    light: bool


def _facts(label: int, rng: np.random.Generator) -> Facts:
    """Draw the first numbers of a picture's stream."""
    if label not in range(len(CLASSES)):
        raise ValueError(f"label: must be an integer in 0..{len(CLASSES) - 1}, got {label!r}.")
    scale = np.float32(rng.uniform(0.68, 0.82))
    angle = rng.uniform(-0.25, 0.25)
    centre = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    offset = rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    hue = HUES[CLASSES[label]] + offset
    ground_hue, near, far = rng.random(3)
    light = bool(rng.integers(2))
    return Facts(scale, angle, centre, hue, ground_hue, near, far, light)


def _frame(facts: Facts, resolution: int) -> Frame:
    """Return the object's own coordinates (x, y), each [H, W]."""
    cos = np.float32(np.cos(facts.angle)) / facts.scale
    sin = np.float32(np.sin(facts.angle)) / facts.scale
    grid_x, grid_y = _grid(resolution)
    x = grid_x - facts.centre[0]
    y = grid_y - facts.centre[1]
    return x * cos + y * sin, y * cos - x * sin


def _distances(label: int, facts: Facts, resolution: int) -> Drawing:
    """Return silhouette and inner part of the placed object, in units of half the picture."""
    silhouette, part = OBJECTS[CLASSES[label]](_frame(facts, resolution))
    return silhouette * facts.scale, part * facts.scale


def shares(label: int, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Return how much of each pixel the object fills in the picture that `draw` would make.

    Args:
        label: Class, 0..9.
        rng: A stream in the same state as the one given to `draw`.
        resolution: Side of the picture in pixels.

    Returns:
        float32 [H, W, 2]: shares in [0, 1] of the object (without outline) and its inner part.
    """
    drawing = _distances(label, _facts(label, rng), resolution)
    pixels = (resolution, resolution, 1)
    covers = [np.broadcast_to(_cover(field, resolution), pixels) for field in drawing]
    return np.concatenate(covers, -1).astype(np.float32)


def caption(label: int, rng: np.random.Generator) -> str:
    """Describe the picture that `draw` would make, such as "a yellow star on a dark ground".

    Args:
        label: Class, 0..9.
        rng: A stream in the same state as the one given to `draw`.
    """
    facts = _facts(label, rng)
    colour = next(name for name, end in COLOURS if facts.hue % 1 < end)
    article = "an" if colour[0] in "aeiou" else "a"
    ground = "light" if facts.light else "dark"
    return f"{article} {colour} {CLASSES[label]} on a {ground} ground"


def draw(label: int, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Draw one picture.

    How many numbers it takes from `rng` does not depend on `resolution`: one stream gives one
    picture at any size.

    Args:
        label: Class, 0..9.
        rng: The random stream.
        resolution: Side of the picture in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: If there is no such class.
    """
    facts = _facts(label, rng)
    image = _ground(facts, rng, resolution)
    surface = _surface(facts, rng, resolution)
    if facts.light:
        outline = _rgb(facts.hue, 0.6, 0.2)
        inner = _rgb(0.12, 0.25, 1.0)
    else:
        outline = _rgb(facts.hue, 0.1, 1.0)
        inner = _rgb(0.12, 0.6, 0.25)
    silhouette, part = _distances(label, facts, resolution)
    image = _blend(image, outline, silhouette - OUTLINE)
    image = _blend(image, surface, silhouette)
    if isinstance(part, np.ndarray):
        image = _blend(image, inner, part)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _ground(facts: Facts, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Draw the texture behind the object, [H, W, 3]."""
    value = 0.95 if facts.light else 0.3
    near_saturation = 0.1 + 0.35 * facts.near
    far_saturation = 0.1 + 0.3 * facts.far
    far_hue = facts.ground_hue + 0.15 * (facts.far - 0.5)
    near = _rgb(facts.ground_hue, near_saturation, value)
    far = _rgb(far_hue, far_saturation, value - 0.22)
    return _paint(rng, resolution, near, far)


def _surface(facts: Facts, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Draw the object's own texture, [H, W, 3]."""
    value = 0.75 if facts.light else 1.0
    near_saturation = 0.95 - 0.2 * facts.near
    far_saturation = 0.8 - 0.2 * facts.far
    near = _rgb(facts.hue, near_saturation, value)
    far = _rgb(facts.hue, far_saturation, value - 0.25)
    return _paint(rng, resolution, near, far)


def _blend(image: np.ndarray, colour: np.ndarray, distance: Field) -> np.ndarray:
    """Lay a colour ([3] or [H, W, 3]) over an image where a distance is negative."""
    share = _cover(distance, image.shape[0])
    return image + share * (colour - image)


# ---- the dataset ----------------------------------------------------------------------------


@DATASETS.register_module()
class ShapesDataset(Dataset):
    """The drawn image set.

    An item is `dict(image=uint8 [3, resolution, resolution], label=int, caption=str, index=int)`.
    The key is an index or (index, epoch); picture and caption depend on (seed, index) only.

    Args:
        length: Number of pictures.
        resolution: Side of the images in pixels, at least 8.
        seed: Which pictures are drawn.
        flip: Whether to mirror half of the pictures, by a coin of (seed, epoch, index).

    Raises:
        ConfigError: If an option is out of its range.
    """

    classes = CLASSES
    captioned = True

    def __init__(
        self,
        *,
        length: int = 50_000,
        resolution: int = 64,
        seed: int = 0,
        flip: bool = False,
    ) -> None:
        self.check_options({"length": length, "seed": seed}, "ShapesDataset")
        self.length = length
        self.resolution = integer("ShapesDataset.resolution", resolution, least=SMALLEST)
        self.seed = seed
        self.flip = boolean("ShapesDataset.flip", flip)

    @classmethod
    def check_options(cls, options: Mapping[str, Any], where: str) -> None:
        """Refuse a length or a seed that is out of its range. Raises ConfigError."""
        if "length" in options:
            positive_int(f"{where}.length", options["length"])
        if "seed" in options:
            integer(f"{where}.seed", options["seed"])

    def __len__(self) -> int:
        return self.length

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"ShapesDataset: index {index} is outside 0..{self.length - 1}")
        return int(index)

    def sample_id(self, index: int) -> str:
        """Return a name such as "shapes/000011 (heart)"."""
        index = self._checked(index)
        return f"shapes/{index:06d} ({CLASSES[index % len(CLASSES)]})"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        index = self._checked(index)
        label = index % len(CLASSES)
        stream = (self.seed, index)
        image = draw(label, np.random.default_rng(stream), self.resolution)
        if self.flip and is_mirrored(self.seed, int(epoch), index, FLIP_SALT):
            image = image[:, ::-1]
        return dict(
            image=to_tensor(image),
            label=label,
            caption=caption(label, np.random.default_rng(stream)),
            index=index,
        )
