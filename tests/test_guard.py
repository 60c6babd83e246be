"""Nothing non-finite reaches weights or EMA (R7): a NaN loss, an infinite loss, an infinite gradient; one step or many."""

import pytest
import torch
from support.runs import final_state, scalars, train

IMPORTS = "custom_imports=dict(imports=['support.poison'])"


@pytest.fixture
def config(tmp_path):
    """A config that brings the misbehaving flow loss with it."""
    path = tmp_path / "poisoned.py"
    root = __import__("support.runs", fromlist=["ROOT"]).ROOT
    path.write_text(
        f"_base_ = ['{root}/configs/ahpa_sit-b.py']\n"
        "custom_imports = dict(imports=['support.poison'])\n"
        "_base_.model.flow_loss = dict(type='PoisonFlowLoss', at=[2])\n"
    )
    return str(path)


def _finite(state):
    return all(v.isfinite().all() for part in ("model", "ema") for v in state[part].values())


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_bad_step_is_skipped_and_counted(tmp_path, config, kind, precision):
    options = [f"model.flow_loss.kind={kind}", f"optim_wrapper.precision={precision}", "hooks.checkpoints.interval=1",
               "hooks.checkpoints.keep=9"]  # fmt: skip
    done = train(tmp_path / "run", config=config, iters=4, options=options)
    assert "iteration 3: a loss or gradient is not finite; the step is skipped" in done.stdout
    assert "shapes/" in done.stdout  # the sample ids
    assert scalars(tmp_path / "run")[-1]["skipped_steps"] >= 1
    states = [torch.load(p, weights_only=True) for p in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert all(_finite(state) for state in states)
    before, after = states[1]["model"], states[2]["model"]
    assert all(torch.equal(before[name], after[name]) for name in before), "the bad step moved a weight"
    moments = states[1]["optimizer"]["optimizer"]["state"], states[2]["optimizer"]["optimizer"]["state"]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])
    if precision == "fp32":
        assert any(not torch.equal(after[name], states[3]["model"][name]) for name in after), "training did not go on"


def test_too_many_in_a_row_stop_the_run_and_name_the_source(tmp_path, config):
    options = ["model.flow_loss.at=[2, 3, 4, 5, 6]", "optim_wrapper.max_bad_steps=3", "hooks.checkpoints.interval=1"]
    done = train(tmp_path / "run", config=config, check=False, iters=9, options=options)
    assert done.returncode == 2, done.stderr
    assert "3 steps in a row were not finite" in done.stderr and "the output of module flow_loss" in done.stderr
    assert "shapes/" in done.stderr and "--resume" in done.stderr
    assert _finite(final_state(tmp_path / "run"))


def test_a_bad_weight_is_named(tmp_path):
    """A module whose output is not finite is found by running the batch again."""
    from ahpa.engine.guard import find_source
    from ahpa.engine.optim import AlignmentOptimWrapper

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def data_preprocessor(self, batch, training):
            return batch

        def loss(self, batch):
            return {"loss_a": self.bad(self.good(batch["x"]) * 1e30 * 1e30).mean()}

    model = Model()
    wrapper = AlignmentOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), fused=True))
    runner = type("Runner", (), dict(plain_model=model, optim_wrapper=wrapper, last_batch={"x": torch.ones(2, 3)}))
    assert find_source(runner) == "the output of module bad"
    runner.last_batch = {"x": torch.full((2, 3), float("nan"))}
    assert find_source(runner) == "the batch's 'x'"
    with torch.no_grad():
        model.bad.weight[0, 0] = float("nan")
    runner.last_batch = {"x": torch.ones(2, 3)}
    assert find_source(runner) == "the weight bad.weight"
