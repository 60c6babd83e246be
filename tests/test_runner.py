"""AlignmentRunner behaves as mmengine documents where users meet it: hooks, logger, visualiser."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from support.runs import ROOT, TINY, final_state, scalars
from test_configs import arguments

from ahpa.cli import train as cli
from ahpa.engine.runner import AlignmentRunner, StatefulHook
from ahpa.registry import HOOKS, UserError


@HOOKS.register_module(force=True)
class Recorder(Hook):
    """Notes when it is called, as a user's mmengine hook would."""

    def __init__(self, every: int = 2):
        self.every = every
        self.calls = []

    def before_run(self, runner):
        self.calls.append(("before_run", runner.iter))

    def before_train(self, runner):
        self.calls.append(("before_train", runner.iter))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.calls.append(("before_train_iter", runner.iter, batch_idx))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append(("after_train_iter", runner.iter, batch_idx))
        if self.every_n_train_iters(runner, self.every):
            self.calls.append(("every", runner.iter + 1))
            runner.logger.info(f"recorder: iteration {runner.iter + 1}")
        if self.is_last_train_iter(runner):
            self.calls.append(("last", runner.iter + 1))
        assert math.isfinite(float(outputs["loss"]))

    def after_train(self, runner):
        self.calls.append(("after_train", runner.iter))

    def after_run(self, runner):
        self.calls.append(("after_run", runner.iter))


@HOOKS.register_module(force=True)
class Counter(StatefulHook):
    """Counts iterations over restarts."""

    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def make_runner(folder, *options, iters=5, resume=False):
    cfg = cli.training_config(
        arguments(
            ROOT / "configs" / "ahpa_sit-b.py",
            demo=True,
            work_dir=str(folder),
            max_iters=iters,
            cfg_options=[*TINY, "hooks.samples=None", "hooks.policy=None", *options],
        )
    )
    return AlignmentRunner.from_config(cfg, resume=resume)


@pytest.fixture
def recorded(tmp_path):
    runner = make_runner(tmp_path, "hooks.recorder=dict(type='Recorder')")
    runner.train()
    (hook,) = [hook for hook in runner._hooks if isinstance(hook, Recorder)]
    return runner, hook.calls


def test_every_n_train_iters_fires_after_iterations_2_and_4(recorded):
    _, calls = recorded
    assert [call[1] for call in calls if call[0] == "every"] == [2, 4]
    assert [call[1] for call in calls if call[0] == "last"] == [5]


def test_hooks_see_the_number_before_the_increment(recorded):
    _, calls = recorded
    for point in ("before_train_iter", "after_train_iter"):
        assert [call[1:] for call in calls if call[0] == point] == [(i, i) for i in range(5)]
    assert [call[0] for call in calls][:2] == ["before_run", "before_train"]
    assert calls[-2:] == [("after_train", 5), ("after_run", 5)]


def test_the_runners_logger_shows_on_the_screen_and_in_train_log(tmp_path, capsys):
    make_runner(tmp_path, "hooks.recorder=dict(type='Recorder')").train()
    shown = [line for line in capsys.readouterr().out.splitlines() if "recorder" in line]
    logged = (tmp_path / "train.log").read_text().splitlines()
    assert shown == ["recorder: iteration 2", "recorder: iteration 4"]
    assert [line for line in logged if "recorder" in line] == shown


def test_mmengines_own_hooks_work(tmp_path):
    runner = make_runner(
        tmp_path,
        "hooks.info=dict(type='RuntimeInfoHook')",
        "hooks.timer=dict(type='IterTimerHook')",
    )
    runner.train()
    assert runner.message_hub.get_scalar("train/loss").current() > 0
    assert runner.message_hub.get_scalar("train/lr").current() == pytest.approx(2e-3)
    assert runner.message_hub.get_info("iter") == 4


def test_a_visualiser_gets_the_scalars(tmp_path):
    backends = "visualizer.vis_backends=[{'type': 'LocalVisBackend'}]"
    make_runner(tmp_path, backends).train()
    (path,) = tmp_path.rglob("vis_data/scalars.json")
    assert '"loss"' in path.read_text() and len(path.read_text().splitlines()) == 5


def test_the_state_of_a_hook_is_saved_and_restored(tmp_path):
    option = "hooks.counter=dict(type='Counter')"
    make_runner(tmp_path, option, iters=3).train()
    assert final_state(tmp_path)["hooks"]["counter"]["count"] == 3
    make_runner(tmp_path, option, iters=5, resume=True).train()
    assert final_state(tmp_path)["hooks"]["counter"]["count"] == 5


def test_the_checkpoint_comes_before_hooks_and_the_log_line(tmp_path):
    """A hook that fails at the last iteration costs neither the checkpoint nor the log line."""

    class Failing(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if self.is_last_train_iter(runner):
                raise RuntimeError("a picture could not be drawn")

    runner = make_runner(tmp_path, iters=3)
    runner.register_hook(Failing())
    with pytest.raises(RuntimeError, match="a picture"):
        runner.train()
    assert final_state(tmp_path)["data"]["iteration"] == 3
    assert scalars(tmp_path)[-1]["iteration"] == 3


def test_a_log_line_that_a_kill_prevented_is_written_at_the_resume(tmp_path):
    make_runner(tmp_path, iters=3).train()
    path = tmp_path / "scalars.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))  # killed between the checkpoint and the line
    make_runner(tmp_path, iters=5, resume=True).train()
    resumed = path.read_text().splitlines(keepends=True)
    assert resumed[:3] == lines and len(resumed) == 5


def test_terms_may_have_any_name(tmp_path):
    """Names that contain "loss", or begin with another name, once changed the objective."""
    criteria = (
        "model.alignments.main.criteria=dict(loss=dict(type='CosineLoss'), "
        "loss_fool=dict(type='L1Loss', weight=0.25))"
    )
    router = (
        "model.alignments.main.router=dict(type='MLPRouter', groups=dict(glossy=[7, 8], matt=[13]))"
    )
    make_runner(tmp_path, criteria, router, iters=2).train()
    for record in scalars(tmp_path):
        parts = record["loss/flow"] + record["loss/main/loss"] + record["loss/main/loss_fool"]
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
        assert record["loss/main/loss_fool"] == pytest.approx(0.25 * record["main/loss_fool"])


def test_adamw_without_an_explicit_decay_spares_biases_and_norms(tmp_path):
    runner = make_runner(
        tmp_path, "optim_wrapper.optimizer=dict(type='AdamW', lr=0.1)", "model.ema=0.5"
    )
    groups = runner.trainer.optimiser.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    count = sum(len(group["params"]) for group in groups)
    assert count == len([p for p in runner.net.parameters() if p.requires_grad])


def test_a_saved_checkpoint_holds_no_frozen_part(tmp_path):
    make_runner(tmp_path, iters=1).train()
    state = final_state(tmp_path)
    assert {name.split(".")[0] for name in state["model"]} == {"backbone", "alignments"}
    assert all(isinstance(value, torch.Tensor) for value in state["ema"].values())


def test_a_batch_that_cannot_be_divided_leaves_an_earlier_run_in_place(tmp_path):
    make_runner(tmp_path, iters=1).train()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="4 cannot be divided by 1 processes x 3"):
        make_runner(tmp_path, "optim_wrapper.accumulative_counts=3", iters=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
