"""The listings of docs/library.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import train

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text()
LOOP, PARTS, SAMPLE, LATENTS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """The names of the first listing after it ran."""
    torch.manual_seed(0)
    found = {}
    exec(compile(LOOP, "docs/library.md, loop", "exec"), found)
    return found


def test_a_plain_loop_trains_a_users_transformer(names):
    history = names["history"]
    assert len(history) == 8 and all(torch.isfinite(torch.tensor(history)))
    assert history[-1] < history[0]
    router = names["alignment"].router
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())


def test_the_parts_of_a_config(names):
    found = dict(names)
    exec(compile(PARTS, "docs/library.md, parts", "exec"), found)
    assert list(found["terms"]) == ["flow", "main/cosine"]
    gradients = [p.grad for p in found["net"].backbone.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, iters=3)
    return folder


def test_sampling_from_a_checkpoint(run, tmp_path):
    found = dict(checkpoint=run, out=tmp_path / "grid.png")
    exec(compile(SAMPLE, "docs/library.md, sampling", "exec"), found)
    assert found["images"].shape == (4, 3, 64, 64) and found["images"].dtype == torch.uint8
    assert Image.open(tmp_path / "grid.png").size == (2 * 66 + 2, 2 * 66 + 2)


def test_given_noise_and_latents(run):
    found = dict(checkpoint=run)
    exec(compile(SAMPLE.split("save_grid(")[0], "docs/library.md, sampling", "exec"), found)
    exec(compile(LATENTS, "docs/library.md, latents", "exec"), found)
    assert found["latents"]["image"].shape == (4, 4, 8, 8)
    assert torch.equal(found["images"], found["decoded"])
