"""Conformance check for datasets."""

import pickle
from collections.abc import Mapping
from typing import Any

import torch

from ..registry import DATASETS, build
from ..registry.contracts import Dataset


def check_dataset(
    dataset: Dataset | Mapping[str, Any],
    *,
    resolution: int = 64,
) -> None:
    """Check that a dataset keeps its contract.

    Its items have the declared fields, types and shapes; they are a function of the key alone, also
    in a pickled copy, as in a loader's processes; keys outside the set raise IndexError.

    Args:
        dataset: A config with a registered type, or a dataset of at least one image.
        resolution: Side of the images in pixels.

    Raises:
        AssertionError: If the dataset breaks its contract.
    """
    if isinstance(dataset, Mapping):
        dataset = build(DATASETS, dataset, resolution=resolution)
    assert isinstance(dataset, Dataset), f"{type(dataset).__name__} is not a Dataset"
    _check_declarations(dataset)
    count = len(dataset)
    tried = sorted({0, count // 2, count - 1})
    for index in tried:
        _check_item(dataset, index, resolution)
        _check_repeats(dataset, index)
        name = dataset.sample_id(index)
        assert isinstance(name, str) and name, f"sample_id({index}) is {name!r}, not a name"
    _check_outside(dataset, count)


def _check_declarations(dataset: Dataset) -> None:
    count = len(dataset)
    assert count > 0, "the dataset is empty"
    declared = type(dataset).captioned
    assert declared is True or declared is False, f"captioned is {declared!r}, not a boolean"
    assert dataset.captioned is declared, "captioned must be declared by the class"
    classes = dataset.classes
    if classes is not None:
        named = isinstance(classes, tuple) and all(isinstance(name, str) for name in classes)
        assert named and classes, f"classes is {classes!r}, not a tuple of names"
        assert len(set(classes)) == len(classes), "two classes have the same name"
    assert declared or classes is not None, "items have neither labels nor captions"


def _check_item(
    dataset: Dataset,
    index: int,
    resolution: int,
) -> None:
    item = dataset[index]
    image = item["image"]
    shape = (3, resolution, resolution)
    assert image.dtype == torch.uint8, f"item {index}: the image is {image.dtype}, not uint8"
    assert tuple(image.shape) == shape, (
        f"item {index}: the image is {tuple(image.shape)}, not {shape}"
    )
    assert type(item["index"]) is int, f"item {index}: 'index' is {item['index']!r}, not an integer"
    assert 0 <= item["index"] < len(dataset), f"item {index}: 'index' is outside the dataset"
    labelled = dataset.classes is not None
    assert ("label" in item) == labelled, (
        f"item {index}: a label is given if `classes` is, and only then"
    )
    assert ("caption" in item) == dataset.captioned, (
        f"item {index}: a caption is given if `captioned` is True, and only then"
    )
    if dataset.classes is not None:
        label = item["label"]
        valid = type(label) is int and 0 <= label < len(dataset.classes)
        assert valid, f"item {index}: the label {label!r} is not in 0..{len(dataset.classes) - 1}"
    if dataset.captioned:
        assert isinstance(item["caption"], str), f"item {index}: the caption is not a string"


def _check_repeats(dataset: Dataset, index: int) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    for key in (index, (index, 0), (index, 3)):
        first = dataset[key]
        _assert_equal_items(first, dataset[key], f"item {key} changes from one call to the next")
        _assert_equal_items(first, copy[key], f"item {key} differs in a pickled copy")
    _assert_equal_items(
        dataset[index], dataset[index, 0], f"item {index} differs from item {(index, 0)}"
    )


def _assert_equal_items(
    first: Mapping[str, Any],
    other: Mapping[str, Any],
    message: str,
) -> None:
    assert first.keys() == other.keys(), message
    assert torch.equal(first["image"], other["image"]), f"{message}: 'image'"
    for name in first.keys() - {"image"}:
        assert first[name] == other[name], f"{message}: {name!r}"


def _check_outside(dataset: Dataset, count: int) -> None:
    try:
        dataset[count]
    except IndexError:
        return
    raise AssertionError(f"item {count} of {count} must raise IndexError")
