"""Text across the rooms: guidance of text conditions, and the captions of the synthetic set."""

import colorsys

import numpy as np
import pytest
import torch
from support.backbones import moved

from ahpa.conditioning.text import PROMPTS
from ahpa.data.shapes import CLASSES, COLOURS, HUE_SPREAD, HUES, ShapesDataset, caption, draw
from ahpa.registry import CONDITIONERS, GUIDANCES, build
from ahpa.registry.contracts import TextCond
from ahpa.sampling.guidance import joined
from ahpa.testing.common import toy_geometry

CAPTIONS = ["a red mushroom", "A Blue fish!", "one two three four five six seven eight nine ten"]


# ---- guidance ------------------------------------------------------------------------------------


def test_guidance_joins_any_condition():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    both = joined(TextCond(a, None), TextCond(b, None))
    assert isinstance(both, TextCond) and both.pooled is None
    assert torch.equal(both.tokens, torch.cat([a, b]))
    assert torch.equal(joined((a, b), (b, a))[1], torch.cat([b, a]))


def guided(scale, predict, cond, null):
    return build(GUIDANCES, dict(type="classifier-free", scale=scale)).guide(predict, cond, null)


@pytest.mark.parametrize("pooled_dim", [None, 20])
def test_guidance_of_text_is_two_single_passes(pooled_dim):
    """v_null + 2 (v_text - v_null)."""
    model = moved("MMDiT", pooled_dim=pooled_dim)
    geometry = toy_geometry(num_classes=None, text_dim=20, pooled_dim=pooled_dim)
    words = dict(type="WordEncoder", length=8, width=20)
    cfg = dict(type="TextConditioner", encoder=words)
    part = build(CONDITIONERS, cfg, geometry=geometry)
    cond, null = part.encode(CAPTIONS, "cpu"), part.null(3, "cpu")
    x, t = {"image": torch.randn(3, 4, 8, 8)}, torch.tensor(0.5)

    def velocity(x, t, cond):
        return model(x, t, cond).pred

    with torch.no_grad():
        with_text, without = (velocity(x, t.expand(3), c)["image"] for c in (cond, null))
        found = guided(2.0, velocity, cond, null)(x, t)["image"]
        unguided = guided(1.0, velocity, cond, null)(x, t)["image"]
    wanted = without + 2 * (with_text - without)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(unguided, with_text)
    assert not torch.allclose(with_text, without, atol=1e-4)


# ---- captions of the synthetic set ---------------------------------------------------------------


def test_captions_say_what_is_drawn():
    dataset = ShapesDataset(length=300, resolution=32)
    corners = {"light": [], "dark": []}
    for index in range(300):
        item = dataset[index]
        article, colour, name, on, a, ground, last = item["caption"].split()
        assert (name, on, a, last) == (CLASSES[index % 10], "on", "a", "ground")
        assert article == ("an" if colour[0] in "aeiou" else "a") and colour in dict(COLOURS)
        assert item["caption"] == dataset[index, 5]["caption"]
        brightest = item["image"][:, :4, :4].amax(0).float()  # HSV's value
        corners[ground].append(float(brightest.mean()) / 255)
    assert len(corners["light"]) > 100 and len(corners["dark"]) > 100
    assert max(corners["dark"]) < 0.5 < min(corners["light"])


def test_the_colour_named_is_the_colour_seen():
    """Classes that cover the picture's middle: the hue there is one that the name stands for."""
    starts = [0.0, *(end for _, end in COLOURS)]
    ranges = [(name, low, high) for low, (name, high) in zip(starts, COLOURS)]
    seen = set()
    for index in range(60):
        label = (1, 7, 4)[index % 3]  # heart, tree, cross
        image = draw(label, np.random.default_rng((9, index)), 64)[28:36, 28:36]
        hue = colorsys.rgb_to_hsv(*image.reshape(-1, 3).mean(0) / 255)[0]
        colour = caption(label, np.random.default_rng((9, index))).split()[1]
        fits = [n for n, low, high in ranges if low - 0.02 <= hue <= high + 0.02]
        assert colour in fits, (colour, hue)
        seen.add(colour)
    assert seen == {"red", "pink", "green", "teal"}


@pytest.mark.parametrize("prompt, name", zip(PROMPTS, CLASSES, strict=True))
def test_the_default_prompts_are_captions_of_the_synthetic_set(prompt, name):
    _, colour, shown, *_ = prompt.split()
    assert shown == name
    hues = [(HUES[name] + offset * HUE_SPREAD) % 1 for offset in np.linspace(-1, 1, 41)]
    assert colour in {next(n for n, end in COLOURS if hue < end) for hue in hues}
