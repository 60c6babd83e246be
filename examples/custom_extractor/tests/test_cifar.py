"""This package's own tests: the conformance check, and real pictures.

The weights are in the folder $AHPA_CIFAR, by default ../shared/weights beside ahpa.
"""

import os
from pathlib import Path

import ahpa_cifar  # noqa: F401
import pytest
import torch

from ahpa.evaluation.collect import collect, evaluate_images
from ahpa.evaluation.extractors import build_extractor
from ahpa.evaluation.images import open_images
from ahpa.evaluation.metrics import build_metrics
from ahpa.registry import UserError
from ahpa.testing import check_extractor, check_prior

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[4] / "shared"
WEIGHTS = Path(os.environ.get("AHPA_CIFAR", SHARED / "weights"))


@pytest.fixture(scope="module")
def config():
    path = WEIGHTS / "cifar10_resnet56.safetensors"
    if not path.exists():
        pytest.skip(f"the weights are not in {WEIGHTS}; set AHPA_CIFAR")
    return dict(type="cifar-resnet", weights=str(path))


@pytest.fixture(scope="module")
def pictures():
    path = SHARED / "data" / "cifar10-train.zip"
    if not path.exists():
        pytest.skip(f"no real pictures: {path} is not there")
    return open_images(path)


def test_it_keeps_the_contract(config):
    check_extractor(config, resolution=32)


def test_the_prior_keeps_the_contract(config):
    weights = str(Path(config["weights"]).with_name("cifar10_resnet44.safetensors"))
    check_prior(dict(type="CifarResNetTaps", weights=weights))


def test_the_weights_come_from_a_folder_too(config, monkeypatch, tmp_path):
    monkeypatch.setenv("AHPA_WEIGHTS", str(Path(config["weights"]).parent))
    found = build_extractor("cifar-resnet")
    assert found.weight_file() == Path(config["weights"])
    monkeypatch.setenv("AHPA_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"put cifar10_resnet56\.safetensors into a folder and set"):
        found.load()


def test_it_knows_the_classes(config, pictures):
    """Most of its own training pictures are named rightly, which no wrong normalisation, order of
    colours or shortcut allows."""
    extractor = build_extractor(config)
    right = 0
    for batch in pictures.batches(100, indices=range(0, 50_000, 250)):
        named = extractor(batch.images)["logits"].argmax(1)
        right += int((named == pictures.labels[batch.indices]).sum())
    assert right / 200 > 0.85


def test_any_metric_takes_it(config, pictures):
    """Two halves of the real pictures are much closer to each other than to blurred ones."""
    metrics = build_metrics([dict(type="fd", extractor=config), dict(type="kid", extractor=config)])
    assert list(metrics) == ["fd:cifar-resnet", "kid:cifar-resnet"]
    needs = [need for metric in metrics.values() for need in metric.needs]
    first = collect(pictures.batches(100, indices=range(0, 50_000, 200)), needs, device="cpu")
    second = list(pictures.batches(100, indices=range(50, 50_000, 200)))
    blurred = [
        batch._replace(
            images=torch.nn.functional.avg_pool2d(batch.images.float(), 3, 1, 1).to(torch.uint8)
        )
        for batch in second
    ]
    found = []
    for batches in (second, blurred):
        ours = collect(batches, needs, device="cpu")
        figures = {}
        for metric in metrics.values():
            figures |= metric.compute(ours, first)
        found.append(figures)
    for name in metrics:
        assert abs(found[0][name]) * 5 < found[1][name], found


def test_wrong_weights_are_told(config):
    with pytest.raises(UserError, match="does not fit ResNet-44"):
        build_extractor({**config, "blocks": 7}).load()
    with pytest.raises(UserError, match="compare with a reference"):
        metrics = build_metrics([dict(type="fd", extractor=config)])
        evaluate_images([], None, metrics, device="cpu")
