"""Conformance checks of feature extractors and metrics."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..evaluation.extractors import build_extractor
from ..evaluation.statistics import KINDS, Statistic
from ..registry import METRICS, build
from ..registry.contracts import FeatureExtractor, Metric, Need
from .common import assert_finite, random_tensor

PROMPTS = ("a red square", "two small discs on a blue ground", "nothing at all")
IMAGES = 40
DIM = 8


def check_extractor(
    extractor: FeatureExtractor | Mapping[str, Any] | str, *, resolution: int = 64
) -> None:
    """Check a feature extractor against its contract.

    Its outputs are declared before the weights are read; it takes images of 8 bits and any size;
    its features are float32 [B, D], finite and without gradient; a row depends on its own image
    and prompt alone, and different images differ; its identity is plain values.

    Args:
        extractor: A config or name, whose type must be registered, or a feature extractor.
        resolution: Side of the images in pixels.

    Raises:
        AssertionError: If it violates the contract; the message says what is wrong.
    """
    built = build_extractor(extractor) if isinstance(extractor, (str, Mapping)) else extractor
    name = type(built).__name__
    assert isinstance(built, FeatureExtractor), f"{name} is not a FeatureExtractor"
    declared = dict(built.outputs)
    assert declared, f"{name}.outputs must name at least one output after the constructor"
    built.load()
    built.eval()
    assert dict(built.outputs) == declared, "loading the weights changes the outputs"
    assert not any(p.requires_grad for p in built.parameters()), "its weights must be frozen"
    for side in (resolution, resolution + 10):
        generator = torch.Generator().manual_seed(side)
        images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)
        _check_features(built, images, declared)
    identity = built.identity()
    plain = json.loads(json.dumps(identity, allow_nan=False))
    assert plain, "identity() is empty; it must say what decides the features"


def _check_features(built: FeatureExtractor, images: Tensor, declared: Mapping[str, int]) -> None:
    """Check the features of three different images."""
    before = images.clone()
    whole = _features(built, images, [0, 1, 2])
    assert torch.equal(images, before), "it changes the images"
    assert set(whole) == set(declared), f"it gave {list(whole)}, declared are {list(declared)}"
    for output, value in whole.items():
        expected = (3, declared[output])
        assert tuple(value.shape) == expected, f"{output!r} is {tuple(value.shape)}, not {expected}"
        assert value.dtype == torch.float32, f"{output!r} is {value.dtype}, expected float32"
        assert not value.requires_grad, f"{output!r} carries a gradient"
        assert_finite(output, value)
        tolerance = 1e-4 * max(1.0, float(value.abs().max()))
        other = _features(built, images, [2, 0])[output]
        same = torch.allclose(other, value[[2, 0]], rtol=1e-4, atol=tolerance)
        assert same, f"{output!r}: a row depends on the other images of the batch"
        differ = not torch.equal(value[0], value[1])
        assert differ, f"{output!r} is the same for different images"


def _features(built: FeatureExtractor, images: Tensor, chosen: list[int]) -> dict[str, Tensor]:
    prompts = [PROMPTS[i] for i in chosen] if built.takes_prompts else None
    return built(images[chosen], prompts)


def check_metric(metric: Metric | Mapping[str, Any]) -> None:
    """Check a metric against its contract, on random features and without any network.

    It returns the declared figures as finite numbers; they depend neither on the batches nor on
    the order in which they came; and a set that equals the reference is never judged worse than
    one that is far from it.

    Args:
        metric: A config, whose type must be registered, or a metric.

    Raises:
        AssertionError: If it violates the contract; the message says what is wrong.
    """
    built: Metric = build(METRICS, metric)
    name = type(built).__name__
    assert isinstance(built, Metric), f"{name} is not a Metric"
    assert built.figures, f"{name}.figures must name at least one figure after the constructor"
    for figure, higher in built.figures.items():
        assert isinstance(figure, str) and isinstance(higher, bool), f"{figure!r}: {higher!r}"
    assert built.needs, f"{name}.needs must name at least one statistic"
    needs = (*built.needs, *built.reference_needs)
    for need in needs:
        assert isinstance(need, Need), f"{need!r} is not a Need"
        assert need.kind in KINDS, f"the kind {need.kind!r} is none of {', '.join(KINDS)}"
        output = build_extractor(json.loads(need.extractor)).outputs
        assert need.output in output, f"its extractor has no output {need.output!r}"
    json.dumps(built.identity(), allow_nan=False)

    near = random_tensor(IMAGES, DIM)
    far = near + 5
    reference = {need: _statistic(need, near, IMAGES) for need in built.reference_needs}
    found = {}
    for what, features, batch in (("near", near, 40), ("batched", near, 7), ("far", far, 40)):
        samples = {need: _statistic(need, features, batch) for need in built.needs}
        found[what] = built.compute(samples, reference)
    for figures in found.values():
        assert set(figures) == set(built.figures), f"it gave {list(figures)}"
        for figure, value in figures.items():
            finite = isinstance(value, float) and math.isfinite(value)
            assert finite, f"{figure} is {value!r}, not a finite float"
    for figure, higher in built.figures.items():
        near_value, batched, far_value = (found[what][figure] for what in found)
        close = math.isclose(near_value, batched, rel_tol=1e-9, abs_tol=1e-9)
        assert close, f"{figure} depends on the batches: {near_value} and {batched}"
        if built.reference_needs:
            worse = near_value < far_value if higher else near_value > far_value
            wanted = "higher" if higher else "lower"
            assert not worse, (
                f"{figure}: the reference itself gets {near_value}, a set far from it {far_value}, "
                f"but {wanted} is declared as better"
            )


def _statistic(need: Need, features: Tensor, batch: int) -> Statistic:
    """Gather a statistic in batches, the last batch first."""
    statistic = KINDS[need.kind]()
    for indices in reversed(torch.arange(len(features)).split(batch)):
        statistic.add(indices, features[indices])
    return statistic
