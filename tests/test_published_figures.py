"""Our figures beside published ones, with the published weights and files: `pytest -m weights`.

Needed, in the folder that AHPA_PUBLISHED names (each test is skipped without its files):
  VIRTUAL_imagenet256_labeled.npz, admnet_guided_upsampled_imagenet256.npz: the reference and the
    samples whose figures are in the README of ADM's evaluator (openai/guided-diffusion)
  cifar10-train.npz: the 50,000 images of CIFAR-10's training set as arr_0 [50000, 32, 32, 3] in the
    order of its files, whose Inception Score torch-fidelity prints in its README
and Inception's weights where `ahpa evaluate` finds them (docs/metrics.md). An accelerator is used
if there is one; on a CPU the first test takes hours.
"""

import os
from pathlib import Path

import pytest
import torch

from ahpa.evaluation.collect import evaluate_images
from ahpa.evaluation.images import open_images
from ahpa.evaluation.metrics import build_metrics
from ahpa.evaluation.reference import Reference
from ahpa.registry import EXTRACTORS, UserError, build

pytestmark = pytest.mark.weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ADM = {  # figure: (printed, how far ours may be from it)
    "is": (215.8370361328125, 1e-3 * 215.84),
    "fid": (3.9425574129223264, 0.01),
    "sfid": (6.140433703346162, 0.01),
    "precision": (0.8265, 0.003),
    "recall": (0.5309, 0.003),
}
CIFAR10_SCORE = 11.23678  # +- 0.095 over the splits of torch-fidelity's shuffled order


@pytest.fixture
def inception():
    """The published weights, if they are here."""
    extractor = build(EXTRACTORS, dict(type="inception"))
    try:
        extractor.load()
    except UserError as error:
        pytest.skip(f"the Inception weights are not here: {error}")
    assert extractor.weights_sha256.startswith("6726825d")
    return extractor


def published(name):
    """A published file."""
    path = Path(os.environ.get("AHPA_PUBLISHED", ".")) / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the folder that AHPA_PUBLISHED names")
    return path


def figures_of(samples, reference, names):
    """Our figures of a file of samples."""
    found, _record = evaluate_images(
        open_images(samples), reference, build_metrics(list(names)), device=DEVICE
    )
    return found


def test_adms_samples_have_the_figures_that_adms_evaluator_prints(inception):
    reference = Reference(str(published("VIRTUAL_imagenet256_labeled.npz")))
    found = figures_of(published("admnet_guided_upsampled_imagenet256.npz"), reference, ADM)
    for name, (printed, tolerance) in ADM.items():
        assert found[name] == pytest.approx(printed, abs=tolerance), name


def test_cifar10_has_the_inception_score_that_torch_fidelity_prints(inception):
    found = figures_of(published("cifar10-train.npz"), None, ["is"])
    assert found["is"] == pytest.approx(CIFAR10_SCORE, abs=0.1)


def test_noise_has_no_inception_score_and_photographs_have(inception, shared):
    """1,000 pictures of 1,000 classes of ImageNet against noise, whose score is about 1."""
    photographs = figures_of(shared / "data" / "imagenet256-sample.zip", None, ["is"])
    noise = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = inception((255 * noise).to(torch.uint8))["logits"].double()
    own = logits.softmax(1)
    divergence = (own * (own.log() - own.mean(0).log())).sum(1).mean()
    assert photographs["is"] > 50 > 3 > float(divergence.exp())
