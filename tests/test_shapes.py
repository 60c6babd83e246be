"""The drawn image set: a picture is a function of (seed, index), classes differ, wrong arguments
are refused."""

import colorsys

import numpy as np
import pytest
import torch

from ahpa.data.shapes import CLASSES, HUES, OBJECTS, ShapesDataset, draw, shares
from ahpa.testing.data import check_dataset


def _float(dataset, indices):
    return torch.stack([dataset[int(i)]["image"] for i in indices]).float() / 255


@pytest.mark.parametrize("flip", [False, True])
def test_it_keeps_the_contract(flip):
    check_dataset(dict(type="ShapesDataset", flip=flip), resolution=16)


MEANS = [77.35, 77.94, 157.35, 152.61, 84.89, 154.81, 163.2, 157.91, 151.06, 152.98]
"""Mean of each of ten pictures, as they were first drawn."""


def test_the_pictures_never_change():
    """The set has no files: its pictures are what this code draws, and runs stay comparable."""
    dataset = ShapesDataset(resolution=33, seed=5, flip=True)
    means = [dataset[index, 1]["image"].float().mean().item() for index in range(10)]
    assert means == pytest.approx(MEANS, abs=0.02)
    captions = [dataset[index]["caption"] for index in (0, 7)]
    assert captions == ["an orange star on a dark ground", "a green tree on a light ground"]


def test_item_has_the_promised_fields():
    item = ShapesDataset(length=30)[12]
    assert set(item) == {"image", "label", "caption", "index"}
    assert item["image"].shape == (3, 64, 64) and item["image"].dtype == torch.uint8
    assert (item["label"], item["index"]) == (2, 12)


@pytest.mark.parametrize("resolution", [8, 33, 64, 256])
def test_any_resolution(resolution):
    assert ShapesDataset(length=10, resolution=resolution)[3]["image"].shape == (
        3,
        resolution,
        resolution,
    )


def test_same_seed_same_picture_and_another_seed_another():
    first, other = ShapesDataset(seed=1), ShapesDataset(seed=2)
    again = ShapesDataset(seed=1, length=100)
    for index in range(20):
        assert torch.equal(first[index]["image"], again[index]["image"])
        assert not torch.equal(first[index]["image"], other[index]["image"])


def test_no_two_pictures_are_alike():
    dataset = ShapesDataset(length=200)
    assert len({dataset[i]["image"].numpy().tobytes() for i in range(200)}) == 200


def test_one_picture_at_two_resolutions():
    """The large picture, reduced, is the small one but for the pixels on an edge."""
    small, large = ShapesDataset(resolution=32), ShapesDataset(resolution=128)
    reduced = torch.nn.functional.avg_pool2d(_float(large, range(20)), 4)
    assert (reduced - _float(small, range(20))).abs().mean() < 0.02


@pytest.mark.parametrize("length", [1, 7, 1_000_000])
def test_any_length(length):
    dataset = ShapesDataset(length=length)
    assert len(dataset) == length
    assert dataset[length - 1]["label"] == (length - 1) % 10
    for outside in (length, -1):
        with pytest.raises(IndexError, match="outside"):
            dataset[outside]


def test_it_can_be_iterated_over():
    assert [item["label"] for item in ShapesDataset(length=12, resolution=8)] == [*range(10), 0, 1]


def test_names_and_labels():
    dataset = ShapesDataset(length=20)
    assert dataset.classes == CLASSES and len(set(CLASSES)) == 10
    assert tuple(HUES) == tuple(OBJECTS) == CLASSES
    assert dataset.sample_id(11) == f"shapes/000011 ({CLASSES[1]})"
    with pytest.raises(IndexError):
        dataset.sample_id(20)


def test_without_flip_the_epoch_changes_nothing():
    dataset = ShapesDataset(length=10)
    assert all(torch.equal(dataset[4]["image"], dataset[4, epoch]["image"]) for epoch in range(5))


def test_flip_is_a_fair_coin_of_seed_epoch_and_index():
    plain, mirrored = (
        ShapesDataset(resolution=8, seed=5),
        ShapesDataset(resolution=8, seed=5, flip=True),
    )
    flipped = np.zeros((20, 20), bool)
    for index in range(20):
        upright = plain[index]["image"]
        for epoch in range(20):
            image = mirrored[index, epoch]["image"]
            assert torch.equal(image, mirrored[index, epoch]["image"])
            same = torch.equal(image, upright)
            flipped[index, epoch] = torch.equal(image, upright.flip(-1)) and not same
            assert flipped[index, epoch] or same
    assert 0.4 < flipped.mean() < 0.6
    assert len({row.tobytes() for row in flipped}) == 20
    assert len({row.tobytes() for row in flipped.T}) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        dict(length=0),
        dict(length=-3),
        dict(length=2.5),
        dict(resolution=7),
        dict(resolution=0),
        dict(seed=-1),
        dict(flip=2),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShapesDataset(**wrong)


@pytest.mark.parametrize("unknown", [dict(lenght=3), dict(size=64)], ids=str)
def test_unknown_arguments_are_refused(unknown):
    with pytest.raises(TypeError):
        ShapesDataset(**unknown)


@pytest.mark.parametrize("label", [-1, 10])
def test_draw_refuses_an_unknown_label(label):
    with pytest.raises(ValueError, match="label"):
        draw(label, np.random.default_rng(0), 32)


@pytest.mark.parametrize("name", CLASSES)
def test_every_object_is_large_and_inside_the_picture(name):
    axis = np.linspace(-1.25, 1.25, 101, dtype=np.float32)
    frame = np.broadcast_to(axis, (101, 101)), np.broadcast_to(axis[:, None], (101, 101))
    silhouette, _ = OBJECTS[name](frame)
    inside = silhouette < 0
    assert 0.15 < inside.mean() * 2.5**2 / 4 < 0.8  # of the square [-1, 1]
    assert not (inside & (np.hypot(*frame) > 1.35)).any()


def test_silhouettes_differ_between_all_classes():
    axis = np.linspace(-1, 1, 65, dtype=np.float32)
    frame = np.broadcast_to(axis, (65, 65)), np.broadcast_to(axis[:, None], (65, 65))
    inside = np.stack([OBJECTS[name](frame)[0] < 0 for name in CLASSES]).reshape(10, -1)
    overlap = (inside[:, None] & inside).sum(-1) / (inside[:, None] | inside).sum(-1)
    assert overlap[~np.eye(10, dtype=bool)].max() < 0.85


def test_classes_can_be_told_apart_by_colour_and_place_alone():
    """Nearest class mean on 8 x 8 px pictures, learnt from 600 and tried on 300 of another seed:
    chance is 10 %."""
    learnt = _float(ShapesDataset(resolution=8, seed=1), range(600)).flatten(1)
    means = torch.stack([learnt[label::10].mean(0) for label in range(10)])
    tried = _float(ShapesDataset(resolution=8, seed=2), range(300)).flatten(1)
    found = torch.cdist(tried, means).argmin(1)
    assert (found == torch.arange(300) % 10).float().mean() > 0.35


@pytest.mark.parametrize("label", range(10))
def test_shares_say_where_the_object_is(label):
    """Every pixel that the object fills has a hue of its class; it keeps away from the border."""
    found = shares(label, np.random.default_rng((5, label)), 64)
    picture = draw(label, np.random.default_rng((5, label)), 64) / 255
    assert found.shape == (64, 64, 2) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    inside = picture[(found[..., 0] == 1) & (found[..., 1] == 0)]
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in inside])
    away = (hues - HUES[CLASSES[label]] + 0.5) % 1 - 0.5
    assert len(inside) > 200 and np.abs(away).max() < 0.07  # HUE_SPREAD and a rounding
    with_parts = ("flower", "fish", "tree", "house", "mushroom")
    assert found[0].max() == 0 and (found[..., 1].max() > 0) == (CLASSES[label] in with_parts)
