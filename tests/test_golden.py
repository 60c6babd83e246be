"""Golden loss curves: 20 steps on the CPU in float32 of the main methods. A refactor must give the same losses.

Written by `python tests/test_golden.py` (into tests/golden.json); do so only for a change that is meant to change them.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.engine.loop import noise_seed
from ahpa.engine.optim import AlignmentOptimWrapper
from ahpa.registry import MODELS, build

FILE = Path(__file__).with_name("golden.json")
AHPA = dict(tap=2, source="vae", weight=1.0)
METHODS = {
    "vanilla": {},
    "static G4": dict(main=dict(AHPA, router=dict(type="StaticRouter", groups="G4"))),
    "AHPA": dict(main=dict(AHPA, router=dict(type="MLPRouter", groups="4/4"))),
    "AHPA table": dict(main=dict(AHPA, router=dict(type="LUTRouter", groups="4/4"))),
    "AHPA attention": dict(main=dict(AHPA, router=dict(type="AttentionRouter", groups="4/4"))),
    "AHPA content": dict(main=dict(AHPA, router=dict(type="ContentRouter", groups="4/4"))),
    "AHPA smooth L1": dict(main=dict(AHPA, router=dict(type="MLPRouter"), criteria=dict(l1=dict(type="SmoothL1Loss")))),
    "multi": {f"b{tap}": dict(AHPA, tap=tap, weight=1 / 3, router=dict(type="StaticRouter")) for tap in (1, 2, 3)},
}


def curve(name):
    """The total loss of 20 steps of batch 4."""
    torch.manual_seed(0)
    model = build(MODELS, dict(
        type="AlignedDenoiser", resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"),
        backbone=dict(type="SiT", depth=3, hidden_size=64, num_heads=2, num_classes=10),
        priors=dict(vae=dict(type="VAETaps")), alignments=METHODS[name], ema=0.99))  # fmt: skip
    wrapper = AlignmentOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    data, losses = ShapesDataset(length=80), []
    for step in range(20):
        batch = torch.utils.data.default_collate([data[4 * step + i] for i in range(4)])
        values = model.train_step({**batch, "noise_seed": noise_seed(0, 0, step, 0)}, optim_wrapper=wrapper)
        wrapper.zero_grad()
        model.update_ema()
        losses.append(round(float(values["loss"].detach()), 6))
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_curve(name):
    golden = json.loads(FILE.read_text())[name]
    ours = curve(name)
    assert len(golden) == 20 and ours == pytest.approx(golden, rel=2e-3)
    if name != "vanilla":  # 20 steps of batch 4 are too few for the flow loss alone to fall
        assert sum(ours[-5:]) < sum(ours[:5])


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({name: curve(name) for name in METHODS}, indent=1) + "\n")
    sys.exit(0)
