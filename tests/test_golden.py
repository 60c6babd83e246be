"""Golden loss curves: 20 float32 steps of the main methods on the CPU, which a refactor must keep.

Written by `python tests/test_golden.py` into tests/golden.json; run it only for a change that is
meant to change the curves.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.engine.assembly import build_model
from ahpa.engine.dryrun import train_step
from ahpa.engine.optimiser import Optimiser
from ahpa.registry.contracts import Progress
from ahpa.registry.seeds import mix_seed

FILE = Path(__file__).with_name("golden.json")
BACKBONE = {"type": "SiT", "depth": 3, "hidden_size": 64, "num_heads": 2, "num_classes": 10}
AHPA = dict(tap=2, source="vae", weight=1.0)
METHODS = {
    "vanilla": {},
    "static G4": dict(main=dict(AHPA, router=dict(type="StaticRouter", groups="G4"))),
    "AHPA": dict(main=dict(AHPA, router=dict(type="MLPRouter", groups="4/4"))),
    "AHPA table": dict(main=dict(AHPA, router=dict(type="LUTRouter", groups="4/4"))),
    "AHPA attention": dict(main=dict(AHPA, router=dict(type="AttentionRouter", groups="4/4"))),
    "AHPA content": dict(main=dict(AHPA, router=dict(type="ContentRouter", groups="4/4"))),
    "AHPA smooth L1": dict(
        main=dict(AHPA, router=dict(type="MLPRouter"), criteria=dict(l1=dict(type="SmoothL1Loss")))
    ),
    "multi": {
        f"b{tap}": dict(AHPA, tap=tap, weight=1 / 3, router=dict(type="StaticRouter"))
        for tap in (1, 2, 3)
    },
}


def curve(name):
    """Return the total losses of 20 steps of batch 4."""
    torch.manual_seed(0)
    model = build_model(
        {
            "resolution": 64,
            "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
            "backbone": BACKBONE,
            "priors": {"vae": {"type": "VAETaps"}},
            "alignments": METHODS[name],
            "ema": 0.99,
        }
    )
    model.parts.load()
    # One group, which decays biases and norms too: what the curves were written with.
    optimiser = Optimiser(optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    data = ShapesDataset(resolution=64, length=80)
    losses = []
    for step in range(20):
        items = [data[4 * step + i] for i in range(4)]
        batch = torch.utils.data.default_collate(items)
        seed = mix_seed(0, 0, step, 0)
        done = train_step(model, optimiser, batch, seed=seed, progress=Progress(step, 20))
        losses.append(round(float(done.total.detach()), 6))
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
