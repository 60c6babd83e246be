"""The listings of docs/library.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import train

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text()
LOOP, SAMPLE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_a_plain_loop_trains_a_users_transformer():
    torch.manual_seed(0)
    names = {}
    exec(compile(LOOP, "docs/library.md", "exec"), names)
    history = names["history"]
    assert len(history) == 8 and all(torch.isfinite(torch.tensor(history)))
    assert history[-1] < history[0]
    router = names["alignment"].router
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, iters=3)
    return folder


def test_sampling_from_a_checkpoint(run, tmp_path):
    names = dict(checkpoint=run, out=tmp_path / "grid.png")
    exec(compile(SAMPLE, "docs/library.md", "exec"), names)
    assert names["images"].shape == (4, 3, 64, 64) and names["images"].dtype == torch.uint8
    assert Image.open(tmp_path / "grid.png").size == (2 * 66 + 2, 2 * 66 + 2)
