"""Nothing non-finite reaches weights or EMA (R7): a bad loss or gradient, in one step or many."""

import pytest
import torch
from support.runs import ROOT, final_state, scalars, train
from torch.utils.data import DataLoader

from ahpa.engine.assembly import build_model
from ahpa.engine.distributed import Processes
from ahpa.engine.dryrun import synthetic_batch
from ahpa.engine.metrics import Metrics
from ahpa.engine.nonfinite import find_source
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.engine.trainer import Trainer, TrainOptions

IMPORTS = "custom_imports=dict(imports=['support.poison'])"


@pytest.fixture
def config(tmp_path):
    """A config that brings the misbehaving flow loss with it."""
    path = tmp_path / "poisoned.py"
    path.write_text(
        f"_base_ = ['{ROOT}/configs/ahpa_sit-b.py']\n"
        "custom_imports = dict(imports=['support.poison'])\n"
        "_base_.model.flow_loss = dict(type='PoisonFlowLoss', at=[2])\n"
    )
    return str(path)


def _finite(state):
    return all(v.isfinite().all() for part in ("model", "ema") for v in state[part].values())


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_bad_step_is_skipped_and_counted(tmp_path, config, kind, precision):
    options = [
        f"model.flow_loss.kind={kind}",
        f"optim_wrapper.precision={precision}",
        "checkpoints.interval=1",
        "checkpoints.keep=9",
    ]
    done = train(tmp_path / "run", config=config, iters=4, options=options)
    assert "iteration 3: a loss or gradient is not finite; the step is skipped" in done.stdout
    assert "shapes/" in done.stdout  # the sample ids
    assert scalars(tmp_path / "run")[-1]["skipped_steps"] >= 1
    states = [
        torch.load(p, weights_only=True)
        for p in sorted((tmp_path / "run" / "checkpoints").iterdir())
    ]
    assert all(_finite(state) for state in states)
    before, after = states[1]["model"], states[2]["model"]
    assert all(torch.equal(before[name], after[name]) for name in before), (
        "the bad step moved a weight"
    )
    moments = (
        states[1]["optimizer"]["optimizer"]["state"],
        states[2]["optimizer"]["optimizer"]["state"],
    )
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])
    if precision == "fp32":
        assert any(not torch.equal(after[name], states[3]["model"][name]) for name in after), (
            "training did not go on"
        )


def test_too_many_in_a_row_stop_the_run_and_name_the_source(tmp_path, config):
    options = [
        "model.flow_loss.at=[2, 3, 4, 5, 6]",
        "optim_wrapper.max_bad_steps=3",
        "checkpoints.interval=1",
    ]
    done = train(tmp_path / "run", config=config, check=False, iters=9, options=options)
    assert done.returncode == 2, done.stderr
    assert (
        "3 steps in a row were not finite" in done.stderr
        and "the output of module flow_loss" in done.stderr
    )
    assert "shapes/" in done.stderr and "--resume" in done.stderr
    assert _finite(final_state(tmp_path / "run"))


def tiny_trainer():
    """A trainer around a tiny real model, with one batch that was just computed."""
    torch.manual_seed(0)
    model = build_model(
        {
            "resolution": 64,
            "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
            "backbone": {
                "type": "SiT",
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "num_classes": 10,
            },
        }
    )
    model.parts.load()
    optimiser = Optimiser(optimizer=build_optimizer({"type": "AdamW", "lr": 1e-3}, model))
    trainer = Trainer(
        net=model,
        model=model,
        optimiser=optimiser,
        loader=DataLoader([]),
        options=TrainOptions(max_iters=4),
        metrics=Metrics(Processes()),
    )
    trainer.iteration = 1
    trainer.batches = [synthetic_batch(model)]
    return trainer


def test_nothing_is_named_if_all_is_finite():
    assert "check the hardware" in find_source(tiny_trainer())


def test_a_non_finite_input_is_named():
    trainer = tiny_trainer()
    trainer.batches[-1]["image"] = torch.full((2, 3, 64, 64), float("nan"))
    assert find_source(trainer) == "the batch's 'image'"


def test_a_non_finite_weight_is_named():
    trainer = tiny_trainer()
    with torch.no_grad():
        trainer.model.backbone.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    assert find_source(trainer) == "the weight backbone.blocks.1.mlp.fc1.weight"


def test_the_first_module_with_a_non_finite_output_is_named():
    trainer = tiny_trainer()
    with torch.no_grad():
        trainer.model.backbone.blocks[0].mlp.fc1.weight.fill_(1e38)
        trainer.model.backbone.blocks[0].mlp.fc1.bias.fill_(3e38)
    assert find_source(trainer).startswith("the output of module backbone.blocks.0.mlp.fc")
