"""The built-in image set: ten classes of drawn objects on textured grounds, made by code and never stored.

It lets every command of the project run without a download, at any resolution and length. A picture is a function of
(seed, index) alone, and `label = index % 10`. Each class is a silhouette given as a signed distance function (negative
inside), so its edges are anti-aliased at any resolution, with a second, inner part (an eye, a door, a trunk) in a
colour of its own. Position, scale, rotation, colours and both textures are random; the hue of an object is drawn from
a range of its class (`HUES`), as in nature, while the ground's hue is free.

Conventions: the picture spans [-1, 1] in both axes, y points down; H = W = resolution; a field is [H, W] float32.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from ..registry import DATASETS

CLASSES = ("star", "heart", "ring", "moon", "cross", "flower", "fish", "tree", "house", "mushroom")
# Centre of each class's hue range on the colour wheel (0 red, 1/3 green, 2/3 blue); the range is +-HUE_SPREAD.
HUES = dict(zip(CLASSES, (0.14, 0.96, 0.65, 0.75, 0.45, 0.86, 0.55, 0.33, 0.07, 0.01), strict=True))
HUE_SPREAD = 0.05
# Names of hues for captions, each up to the hue that is given; red goes round the wheel's end.
COLOURS = (("red", 0.04), ("orange", 0.11), ("yellow", 0.2), ("green", 0.42), ("teal", 0.54), ("blue", 0.7),
           ("purple", 0.83), ("pink", 0.95), ("red", 1.0))  # fmt: skip
OUTLINE = 0.05  # width of the dark or light line around an object, as a share of half the picture
FLIP_SALT = 0x5EED  # keeps the flip coins apart from the pictures' own random streams
NOTHING = np.float32(9.0)  # a distance outside of every picture: no inner part

# ---- signed distances: p = (x, y), two fields in the object's own frame, where the object fills about [-1, 1] ----


def _circle(p, cx, cy, radius):
    return np.hypot(p[0] - cx, p[1] - cy) - radius


def _ellipse(p, cx, cy, rx, ry):
    """Near enough to a distance for an edge: exact on the border, scaled by the smaller radius elsewhere."""
    return (np.hypot((p[0] - cx) / rx, (p[1] - cy) / ry) - 1) * min(rx, ry)


def _box(p, cx, cy, half_x, half_y):
    dx, dy = np.abs(p[0] - cx) - half_x, np.abs(p[1] - cy) - half_y
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _polygon(p, corners):
    """Distance to a simple polygon: the nearest edge's distance, negative where a ray crosses edges an odd number."""
    x, y = p
    nearest, inside = np.full(x.shape, NOTHING**2), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, qx, qy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((qx * ex + qy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (qx - along * ex) ** 2 + (qy - along * ey) ** 2)
        if ay != by:
            inside ^= ((y >= ay) != (y >= by)) & (qx < qy * (ex / ey))
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


# ---- the ten objects: each returns (silhouette, inner part), two fields of distances ----


def _star(p):
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.45, 1.05)
    corners = list(zip((radii * np.sin(angles)).tolist(), (0.08 - radii * np.cos(angles)).tolist(), strict=True))
    return _polygon(p, corners), NOTHING


def _heart(p):
    x, y = np.abs(p[0]), p[1]
    lobe = np.hypot(x - 0.44, y + 0.38) - 0.5
    tip = _polygon((x, y), [(-0.3, -0.42), (0.44, -0.42), (0.85, -0.1), (0.0, 0.95), (-0.3, 0.6)])
    return np.minimum(lobe, tip), NOTHING


def _ring(p):
    return np.abs(_circle(p, 0, 0, 0.68)) - 0.25, NOTHING


def _moon(p):
    return np.maximum(_circle(p, 0, 0, 0.95), -_circle(p, 0.5, -0.12, 0.76)), NOTHING


def _cross(p):
    return np.minimum(_box(p, 0, 0, 0.92, 0.3), _box(p, 0, 0, 0.3, 0.92)), NOTHING


def _flower(p):
    angle, radius = np.arctan2(p[0], -p[1]), np.hypot(*p)
    turn = np.mod(angle + np.pi / 6, np.pi / 3) - np.pi / 6  # six petals: fold the plane onto one of them
    petal = _circle((radius * np.sin(turn), radius * np.cos(turn)), 0, 0.62, 0.35)
    return np.minimum(petal, radius - 0.5), radius - 0.32


def _fish(p):
    body = _ellipse(p, -0.18, 0, 0.76, 0.52)
    tail = _polygon(p, [(0.35, 0.0), (0.98, -0.52), (0.82, 0.0), (0.98, 0.52)])
    return np.minimum(body, tail), _circle(p, -0.55, -0.13, 0.12)


def _tree(p):
    crown = _polygon(p, [(0, -1.05), (0.5, -0.4), (0.3, -0.4), (0.72, 0.1), (0.4, 0.1), (0.85, 0.62),
                         (-0.85, 0.62), (-0.4, 0.1), (-0.72, 0.1), (-0.3, -0.4), (-0.5, -0.4)])  # fmt: skip
    trunk = _box(p, 0, 0.8, 0.16, 0.2)
    return np.minimum(crown, trunk), trunk


def _house(p):
    roof = _polygon(p, [(0, -0.98), (0.98, -0.12), (-0.98, -0.12)])
    openings = np.minimum(_box(p, -0.3, 0.56, 0.18, 0.34), _box(p, 0.32, 0.32, 0.19, 0.19))
    return np.minimum(roof, _box(p, 0, 0.35, 0.74, 0.55)), openings


def _mushroom(p):
    cap = np.maximum(_ellipse(p, 0, 0, 0.98, 0.88), p[1] - 0.08)
    stem = _box(p, 0, 0.46, 0.25, 0.42)
    places = ((-0.5, -0.22, 0.17), (0.06, -0.52, 0.17), (0.52, -0.18, 0.15))  # x, y, radius of the spots
    spots = functools.reduce(np.minimum, (_circle(p, *place) for place in places))
    return np.minimum(cap, stem), np.minimum(np.maximum(stem, 0.08 - p[1]), spots)


_DRAWERS = (_star, _heart, _ring, _moon, _cross, _flower, _fish, _tree, _house, _mushroom)
OBJECTS = dict(zip(CLASSES, _DRAWERS, strict=True))

# ---- colours and textures ----


def _rgb(hue, saturation, value):
    """HSV in [0, 1] (the hue wraps) to an RGB vector [3]."""
    k = (np.array((5.0, 3.0, 1.0)) + 6 * hue) % 6
    return (value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _grid(resolution):
    """The picture's pixel centres: (x [H, W], y [H, W]) in [-1, 1]."""
    axis = ((np.arange(resolution, dtype=np.float32) + 0.5) * 2 / resolution - 1).astype(np.float32)
    return np.broadcast_to(axis, (resolution, resolution)), np.broadcast_to(axis[:, None], (resolution, resolution))


@functools.lru_cache(maxsize=64)
def _spread(cells, resolution):
    """Smooth interpolation [H, cells] of `cells` equidistant values to `resolution` pixels."""
    at = (np.arange(resolution) + 0.5) / resolution * (cells - 1)
    low = np.minimum(at.astype(int), cells - 2)
    part = (at - low) ** 2 * (3 - 2 * (at - low))
    rows, out = np.arange(resolution), np.zeros((resolution, cells), np.float32)
    out[rows, low], out[rows, low + 1] = 1 - part, part
    return out


def _pattern(rng, resolution):
    """A random field in [0, 1] [H, W]: a gradient, wide bands or clouds, each a third of the time."""
    kind, angle, period = rng.integers(3), rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
    shift, cells, noise = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 6)), rng.random((5, 5), dtype=np.float32)
    if kind == 2:
        spread = _spread(cells, resolution)
        return spread @ noise[:cells, :cells] @ spread.T
    x, y = _grid(resolution)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if kind == 0:
        return np.clip(0.5 + 0.4 * along, 0, 1)
    return 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi / period) + np.float32(shift))


def _paint(rng, resolution, first, second):
    """Two colours [3] mixed by a random pattern -> [H, W, 3]."""
    return first + _pattern(rng, resolution)[..., None] * (second - first)


def _cover(distance, resolution):
    """The share of each pixel that lies inside, [H, W, 1]: a ramp of one pixel across the border."""
    return np.clip(0.5 - distance * (resolution / 2), 0, 1)[..., None]


class Facts(NamedTuple):
    """What is drawn before any pixel: the object's frame and colours. `near`, `far`: how grey colours are, in [0, 1)."""

    scale: np.float32
    angle: float
    centre: np.ndarray  # [2], float32
    hue: float
    ground_hue: float
    near: float
    far: float
    light: bool  # a light ground with a deep object, or a dark ground with a bright one


def _facts(label, rng):
    """The first numbers of a picture's stream."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"draw: label must be in 0..{len(CLASSES) - 1}, got {label!r}")
    scale, angle = np.float32(rng.uniform(0.68, 0.82)), rng.uniform(-0.25, 0.25)
    centre = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    hue, ground_hue, near, far = HUES[CLASSES[label]] + rng.uniform(-HUE_SPREAD, HUE_SPREAD), *rng.random(3)
    return Facts(scale, angle, centre, hue, ground_hue, near, far, light=bool(rng.integers(2)))


def _frame(facts, resolution):
    """The object's own coordinates (x, y), each [H, W]."""
    cos, sin = (np.float32(part) / facts.scale for part in (np.cos(facts.angle), np.sin(facts.angle)))
    x, y = _grid(resolution)[0] - facts.centre[0], _grid(resolution)[1] - facts.centre[1]
    return x * cos + y * sin, y * cos - x * sin


def _distances(label, facts, resolution):
    """Silhouette and inner part of the placed object: two fields of distances, the second a number where there is none."""
    return tuple(field * facts.scale for field in OBJECTS[CLASSES[label]](_frame(facts, resolution)))


def shares(label: int, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """The shares in [0, 1] of each pixel that the object (without its line) and its inner part fill, in the picture that
    `draw` makes of the same label and a like stream -> float32 [H, W, 2]."""
    fields = _distances(label, _facts(label, rng), resolution)
    covers = [np.broadcast_to(_cover(field, resolution), (resolution, resolution, 1)) for field in fields]
    return np.concatenate(covers, -1).astype(np.float32)


def caption(label: int, rng: np.random.Generator) -> str:
    """What the picture that `draw` makes of the same label and a like stream shows: 'a yellow star on a dark ground'."""
    facts = _facts(label, rng)
    colour = next(name for name, end in COLOURS if facts.hue % 1 < end)
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {CLASSES[label]} on a {'light' if facts.light else 'dark'} ground"


def draw(label: int, rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Draws one picture of class `label` (0..9) with the random stream `rng` -> uint8 [H, W, 3].

    How many numbers it takes from `rng` does not depend on `resolution`: one stream gives one picture at any size.
    """
    facts = _facts(label, rng)
    hue, ground_hue, near, far, light = facts[3:]
    ground_value, object_value = (0.95, 0.75) if light else (0.3, 1.0)
    image = _paint(rng, resolution, _rgb(ground_hue, 0.1 + 0.35 * near, ground_value),
                   _rgb(ground_hue + 0.15 * (far - 0.5), 0.1 + 0.3 * far, ground_value - 0.22))  # fmt: skip
    surface = _paint(rng, resolution, _rgb(hue, 0.95 - 0.2 * near, object_value),
                     _rgb(hue, 0.8 - 0.2 * far, object_value - 0.25))  # fmt: skip
    outline, inner = ((0.6, 0.2), (0.25, 1.0)) if light else ((0.1, 1.0), (0.6, 0.25))  # saturation and value
    silhouette, part = _distances(label, facts, resolution)
    layers = ((silhouette - OUTLINE, _rgb(hue, *outline)), (silhouette, surface), (part, _rgb(0.12, *inner)))
    for distance, colour in layers:
        if np.ndim(distance):
            image = image + _cover(distance, resolution) * (colour - image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


@DATASETS.register_module()
class ShapesDataset(torch.utils.data.Dataset):
    """The drawn set as a dataset. `length` pictures of `resolution` pixels; `seed` picks which; `flip` mirrors half.

    An item is `dict(image=uint8 [3, H, W], label=int, caption=str, index=int)`. The key is an index, or `(index,
    epoch)`: picture and caption depend on (seed, index) only, the coin of a mirror flip on (seed, epoch, index).
    Raises ValueError for a length below 1, a resolution below 8 or a negative seed, and IndexError outside the set.
    """

    classes, captioned = CLASSES, True

    def __init__(self, *, length: int = 50_000, resolution: int = 64, seed: int = 0, flip: bool = False):
        for name, value, least in (("length", length, 1), ("resolution", resolution, 8), ("seed", seed, 0)):
            if value != int(value) or value < least:
                raise ValueError(f"ShapesDataset: {name} must be a whole number of at least {least}, got {value!r}")
        self.length, self.resolution, self.seed, self.flip = int(length), int(resolution), int(seed), bool(flip)

    def __len__(self) -> int:
        return self.length

    def _check(self, index):
        if not 0 <= index < self.length:
            raise IndexError(f"ShapesDataset: index {index} is outside 0..{self.length - 1}")
        return int(index)

    def sample_id(self, index: int) -> str:
        index = self._check(index)
        return f"shapes/{index:06d} ({CLASSES[index % len(CLASSES)]})"

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        index = self._check(index)
        label = index % len(CLASSES)
        image = draw(label, np.random.default_rng((self.seed, index)), self.resolution)  # [H, W, 3]
        if self.flip and np.random.default_rng((self.seed, int(epoch), index, FLIP_SALT)).integers(2):
            image = image[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        words = caption(label, np.random.default_rng((self.seed, index)))
        return dict(image=pixels, label=label, caption=words, index=index)
