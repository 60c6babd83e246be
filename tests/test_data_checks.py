"""The conformance check for datasets accepts every registered one and refuses broken ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.registered import shipped

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import DATASETS
from ahpa.registry.contracts import Dataset
from ahpa.testing.data import check_dataset


def options_of(name, base):
    """Own options of each registered dataset, for small files made below `base`."""
    for i in range(3):
        (base / f"class{i}").mkdir()
        pixels = np.full((20, 24, 3), 50 * i, np.uint8)
        Image.fromarray(pixels).save(base / f"class{i}" / "a.png")
        Image.fromarray(pixels).save(base / f"{i}.png")
    images = [dict(id=i, file_name=f"{i}.png") for i in range(3)]
    captions = [dict(image_id=i, caption=f"{k}") for i in range(3) for k in range(5)]
    (base / "captions.json").write_text(json.dumps(dict(images=images, annotations=captions)))
    return {
        "FlatImages": dict(root=str(base)),
        "ImageFolder": dict(root=str(base)),
        "CocoCaptions": dict(images=str(base), annotations=str(base / "captions.json")),
        "ShapesDataset": dict(length=30),
    }[name]


@pytest.mark.parametrize("name", shipped(DATASETS))
def test_every_registered_dataset_passes(tmp_path, name):
    check_dataset(dict(type=name, **options_of(name, tmp_path)), resolution=32)


class Changed(ShapesDataset):
    """The drawn set, with items changed by a function of (item, key)."""

    def __init__(self, change):
        super().__init__(length=20, resolution=16)
        self.change = change

    def __getitem__(self, key):
        return self.change(dict(super().__getitem__(key)), key)

    def __reduce__(self):
        return (Changed, (self.change,))


def without(name):
    def change(item, key):
        del item[name]
        return item

    return change


def replace(**values):
    def change(item, key):
        return item | values

    return change


def random_pixels(item, key):
    return item | dict(image=torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))


def other_after_an_epoch(item, key):
    return item | dict(caption="two" if isinstance(key, tuple) else "one")


class Bare(Dataset):
    """A dataset of one black picture, with attributes as given."""

    classes = ("one",)

    def __len__(self):
        return 1

    def __getitem__(self, key):
        index = key[0] if isinstance(key, tuple) else key
        image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        return dict(image=image, label=0, index=index)


class Nameless(Bare):
    def sample_id(self, index):
        return index


BROKEN = {
    "label missing": (Changed(without("label")), "a label is given"),
    "caption missing": (Changed(without("caption")), "a caption is given"),
    "label out of range": (Changed(replace(label=10)), "label 10 is not in 0..9"),
    "float image": (Changed(replace(image=torch.zeros(3, 16, 16))), "not uint8"),
    "caption of bytes": (Changed(replace(caption=b"x")), "not a string"),
    "index outside": (Changed(replace(index=20)), "outside the dataset"),
    "not repeatable": (Changed(random_pixels), "changes from one call"),
    "epoch 0 is not the default": (Changed(other_after_an_epoch), "differs from item"),
    "no dataset": ([1, 2], "not a Dataset"),
    "sample_id": (Nameless(), "not a name"),
    "no end": (Bare(), "must raise IndexError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_is_refused(name, monkeypatch):
    dataset, message = BROKEN[name]
    monkeypatch.setattr("ahpa.testing.data.pickle.dumps", lambda value: value)
    monkeypatch.setattr("ahpa.testing.data.pickle.loads", lambda value: value)
    with pytest.raises(AssertionError, match=message):
        check_dataset(dataset, resolution=16)


@pytest.mark.parametrize(
    "attributes, message",
    [
        (dict(classes=["one"]), "not a tuple"),
        (dict(classes=("one", "one")), "same name"),
        (dict(classes=None), "neither labels nor captions"),
        (dict(captioned=1), "not a boolean"),
        (dict(__len__=lambda self: 0), "empty"),
    ],
    ids=["list", "same-name", "none", "not-boolean", "empty"],
)
def test_a_broken_declaration_is_refused(attributes, message):
    with pytest.raises(AssertionError, match=message):
        check_dataset(type("Broken", (Bare,), attributes)(), resolution=16)


def test_another_resolution_is_refused():
    with pytest.raises(AssertionError, match=r"not \(3, 32, 32\)"):
        check_dataset(ShapesDataset(length=5, resolution=16), resolution=32)
