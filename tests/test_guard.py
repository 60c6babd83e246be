"""Nothing non-finite reaches weights or EMA (R7): a bad loss or gradient, in one step or many."""

import json
import math

import pytest
import torch
from mmengine.hooks import Hook
from support.runs import ROOT, final_state, scalars, train
from test_runner import make_runner
from torch.utils.data import DataLoader

from ahpa.engine.assembly import build_model
from ahpa.engine.distributed import Processes
from ahpa.engine.dryrun import synthetic_batch
from ahpa.engine.metrics import Metrics
from ahpa.engine.nonfinite import NonFinite, bad_rows, find_source, stop_if_hopeless
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.engine.trainer import Run, Trainer, TrainOptions

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


class Script(Run):
    """Keeps what a run says."""

    def __init__(self):
        self.said = []
        self.noted = []

    def say(self, message):
        self.said.append(message)

    def note_step(self, iteration, kind, samples):
        self.noted.append((iteration, kind, samples))


def watched(rows, *, processes=None, interval=100, max_bad_steps=10):
    """Note steps (bad, bad losses, norm) as a GPU would, with one reading every `interval`.

    Step i has the samples 10 i and 10 i + 1, one for each of two micro-batches.
    """
    trainer = tiny_trainer()
    (batch,) = trainer.batches
    trainer.run = run = Script()
    trainer.iteration = 0
    trainer.optimiser.max_bad_steps = max_bad_steps
    if processes:
        trainer.metrics.processes = processes
    for bad, bad_losses, norm in rows:
        trainer.iteration += 1
        first = 10 * trainer.iteration
        trainer.batches = [{**batch, "index": torch.tensor([first + i])} for i in range(2)]
        optimiser = trainer.optimiser
        optimiser.bad, optimiser.grad_norm = torch.tensor(float(bad)), torch.tensor(norm)
        optimiser.bad_losses = torch.tensor(bad_losses)
        optimiser.bad_total = optimiser.bad_total + optimiser.bad
        trainer.watch.note(trainer, {"loss": torch.tensor(1.5)})
        if trainer.iteration % interval == 0:
            trainer.watch.read(trainer)
    return run


GOOD = (0, [0.0, 0.0], 1.0)


def test_sparse_reading_names_the_samples_of_the_bad_step():
    """The flags are read every 100 steps on a GPU; the samples named are not the last step's."""
    rows = [GOOD] * 100
    rows[41] = (1, [0.0, 1.0], math.nan)
    rows[77] = (1, [0.0, 0.0], math.inf)
    run = watched(rows)
    first, second = run.said
    assert first.startswith("iteration 42: a loss or gradient is not finite")
    assert "1 in a row, 1 in all; samples 421)" in first, "the micro-batch whose loss is not finite"
    assert second.startswith("iteration 78:") and "2 in all; samples 780, 781)" in second
    assert run.noted == [(42, "skipped", ["421"]), (78, "skipped", ["780", "781"])]


OVERFLOWS = " Every loss is finite, but the norm of the gradients is inf: they overflow."


def test_an_overflow_is_told_in_the_line_of_its_step():
    """The loss and, of finite gradients, the norm: no sample is at fault."""
    rows = [(1, [0.0, 0.0], math.inf), (1, [1.0, 0.0], math.inf), (1, [0.0, 0.0], math.nan)]
    overflow, bad_loss, unknown = watched(rows, interval=3).said
    assert overflow.endswith(f"samples 10, 11).{OVERFLOWS}")
    assert bad_loss.endswith("samples 20).") and unknown.endswith("samples 30, 31).")


def test_an_overflow_in_a_real_run(tmp_path):
    """A weight that lets the sum of the squared gradients exceed the largest float32."""
    options = ["model.alignments.main.weight=1e30", "optim_wrapper.max_bad_steps=2", "hooks=None"]
    done = train(tmp_path, check=False, iters=9, options=options)
    assert done.returncode == 2 and done.stdout.count(OVERFLOWS) == 2, done.stdout
    assert "the norm of the gradients, which overflows float32" in done.stderr
    assert "they are not the reason" in done.stderr and "look at" not in done.stderr


class TwoRanks(Processes):
    """This process is rank 0; rank 1's micro-batches have other samples, the second a bad loss."""

    def __init__(self, other):
        super().__init__(rank=0, world=2)
        self.other = other

    def gather(self, value):
        return [value, self.other]


def test_the_rank_at_fault_is_named():
    other = (["b2"], ["b1", "b2"], 9.0)
    run = watched([(1, [0.0, 0.0], math.nan)], processes=TwoRanks(other), interval=1)
    assert "samples b2)" in run.said[0]
    other = ([], ["b1", "b2"], 0.0)
    run = watched([(1, [0.0, 0.0], math.nan)], processes=TwoRanks(other), interval=1)
    assert run.noted == [(1, "skipped", ["10", "11", "b1", "b2"])], "a gradient is everybody's"


def test_only_some_of_many_skipped_steps_are_told_and_all_are_noted():
    run = watched([(1, [1.0, 0.0], math.nan), GOOD] * 50)
    assert len(run.noted) == 50 and len(run.said) == 11
    assert run.said[-1] == "40 more steps were skipped since then."


def test_a_streak_that_ends_before_the_reading_does_not_stop_a_run_that_goes_on():
    bad = (1, [1.0, 0.0], math.nan)
    run = watched([*[bad] * 5, GOOD, *[bad] * 2, GOOD], interval=9, max_bad_steps=3)
    assert "5 in a row, 5 in all" in run.said[4] and "1 in a row, 6 in all" in run.said[5]
    with pytest.raises(NonFinite, match="4 steps in a row"):
        watched([*[bad] * 2, GOOD, *[bad] * 4], interval=7, max_bad_steps=3)


def test_a_loss_spike_is_told_with_its_samples():
    rows = [(0, [0.0, 0.0], 1.0 + 0.1 * (i % 3)) for i in range(60)]
    rows[50] = (0, [0.0, 0.0], 7.0)
    rows[55] = (1, [0.0, 0.0], math.inf)  # skipped, not a spike
    rows[57] = (0, [0.0, 0.0], 5.0)  # below five times the median of 1.1
    run = watched(rows, interval=60)
    assert [(iteration, kind) for iteration, kind, _ in run.noted] == [
        (51, "spike"),
        (56, "skipped"),
    ]
    assert "the gradient norm 7 is 6.36 times its running median 1.1" in run.said[0]
    assert "loss 1.5; samples 510, 511" in run.said[0]


def test_no_spike_is_told_before_there_is_a_median():
    assert watched([(0, [0.0, 0.0], 1.0), (0, [0.0, 0.0], 50.0)] * 9, interval=18).said == []


def test_a_spike_in_a_real_run(tmp_path, config):
    options = ["model.flow_loss.kind=1000", "model.flow_loss.at=[24]"]
    done = train(tmp_path / "run", config=config, iters=26, options=options)
    (line,) = [line for line in done.stdout.splitlines() if "loss spike" in line]
    assert line.startswith("iteration 25: loss spike: the gradient norm") and "shapes/" in line
    (record,) = map(json.loads, (tmp_path / "run" / "bad_steps.json").read_text().splitlines())
    assert record["iteration"] == 25 and record["kind"] == "spike" and len(record["samples"]) == 4


def test_a_non_finite_weight_is_never_saved_and_says_what_is_sound(tmp_path):
    """A weight that a hardware fault spoils between two steps."""
    runner = make_runner(tmp_path, iters=9)

    class Fault(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if batch_idx == 3:
                with torch.no_grad():
                    runner.net.backbone.blocks[1].mlp.fc1.weight[2, 5] = float("inf")

    runner.register_hook(Fault())
    sound = tmp_path / "checkpoints" / "iter_000000003.pth"
    with pytest.raises(NonFinite) as caught:
        runner.train()
    said = str(caught.value)
    assert "the weight backbone.blocks.1.mlp.fc1.weight is not finite (1 of" in said
    assert f"The newest sound checkpoint is {sound}" in said and "at iteration 5" in said
    with pytest.raises(NonFinite, match=r"model: backbone.blocks.1.mlp.fc1.weight is not finite"):
        runner.save()
    assert [path.name for path in sound.parent.iterdir()] == [sound.name]
    resumed = train(tmp_path, "--resume", iters=6)
    assert f"resumed from {sound} at iteration 3" in resumed.stdout
    assert _finite(final_state(tmp_path))


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


def test_a_row_of_bad_steps_deletes_no_checkpoint_from_before_it(tmp_path, config):
    """Weights that are finite and make every loss overflow would push out all sound ones."""
    options = [
        "model.flow_loss.at=[3, 4, 5, 6, 7]",
        "optim_wrapper.max_bad_steps=5",
        "checkpoints.interval=1",
        "checkpoints.keep=2",
        "hooks=None",
    ]
    train(tmp_path / "run", config=config, check=False, iters=9, options=options)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pth"))
    assert kept[0] <= "iter_000000003.pth", kept


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


def spoil(trainer):
    """Give the batch sample numbers, of which the second has a picture that is not finite."""
    batch = trainer.batches[-1]
    image = batch["image"].float()
    image[1, 0, 3, 4] = float("inf")
    batch.update(image=image, index=torch.tensor([7, 9]))


def test_the_one_sample_at_fault_is_named():
    trainer = tiny_trainer()
    spoil(trainer)
    assert find_source(trainer, trainer.batches) == "the batch's 'image' for sample 9"


def test_the_one_sample_of_a_modules_output_is_named():
    """Whatever the frozen parts and the model make of a batch, a row belongs to a sample."""
    output = torch.zeros(3, 4, 5)
    output[2, 1, 1] = float("nan")
    assert bad_rows(output, 3) == {2}
    assert bad_rows({"a": output, "b": torch.full((3,), float("inf"))}, 3) == set(), "all of them"
    assert bad_rows(output[2], 3) == set(), "no row for each sample"


def test_every_micro_batch_is_looked_at():
    trainer = tiny_trainer()
    spoil(trainer)
    trainer.batches.append(synthetic_batch(trainer.model))
    assert find_source(trainer, trainer.batches) == "the batch's 'image' for sample 9"


def test_an_overflowing_norm_is_told_as_that():
    """Every gradient is finite, but the sum of their squares exceeds the largest float32."""
    trainer = tiny_trainer()
    weight = trainer.model.backbone.blocks[0].mlp.fc1.weight
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, 1e20))
    source = find_source(trainer, trainer.batches)
    handle.remove()
    assert "the norm of the gradients, which overflows float32" in source
    assert "1e+20, is of backbone.blocks.0.mlp.fc1.weight" in source
    assert all(p.grad is None for p in trainer.model.parameters())


def hopeless(trainer):
    """What is said when a row of bad steps ends the run."""
    with pytest.raises(NonFinite) as caught:
        stop_if_hopeless(trainer, in_row=10, samples="7, 9")
    return str(caught.value)


def test_weights_that_have_grown_are_told_and_not_blamed_on_the_samples():
    """They are finite, but any images overflow with them."""
    trainer = tiny_trainer()
    trainer.optimiser.lr = 1000.0
    with torch.no_grad():
        trainer.model.backbone.blocks[0].mlp.fc1.weight.fill_(-1e38)
    told = hopeless(trainer)
    assert "Samples: 7, 9; random images are not finite either, so they are not the reason" in told
    grown = "The largest |weight| is 1e+38 (backbone.blocks.0.mlp.fc1.weight)"
    assert f"{grown}, the learning rate 1e+03: if the weights have grown, lower the rate" in told
    assert "look at" not in told and "\n" not in told


def test_an_overflowing_norm_is_not_blamed_on_the_samples():
    trainer = tiny_trainer()
    weight = trainer.model.backbone.blocks[0].mlp.fc1.weight
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, 1e20))
    told = hopeless(trainer)
    handle.remove()
    assert "the norm of the gradients, which overflows float32" in told
    assert "not the reason" in told and "lower the weight of the term that overflows" in told


def test_a_bad_sample_is_still_to_be_looked_at():
    trainer = tiny_trainer()
    spoil(trainer)
    told = hopeless(trainer)
    assert "the batch's 'image' for sample 9. Samples: 7, 9. " in told
    assert "look at these samples" in told and "not the reason" not in told
    assert "The largest |weight| is " in told


def test_grown_weights_in_a_real_run(tmp_path):
    options = ["optim_wrapper.optimizer.lr=1e3", "optim_wrapper.max_bad_steps=2", "hooks=None"]
    done = train(tmp_path, check=False, iters=9, options=options)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "random images are not finite either" in line and "the learning rate 1e+03" in line


def test_nothing_is_named_if_all_is_finite():
    trainer = tiny_trainer()
    assert "check the hardware" in find_source(trainer, trainer.batches)


def test_a_non_finite_input_is_named():
    trainer = tiny_trainer()
    trainer.batches[-1]["image"] = torch.full((2, 3, 64, 64), float("nan"))
    assert find_source(trainer, trainer.batches) == "the batch's 'image'"


def test_a_non_finite_weight_is_named():
    trainer = tiny_trainer()
    with torch.no_grad():
        trainer.model.backbone.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    assert find_source(trainer, trainer.batches) == "the weight backbone.blocks.1.mlp.fc1.weight"


def test_the_first_module_with_a_non_finite_output_is_named():
    trainer = tiny_trainer()
    with torch.no_grad():
        trainer.model.backbone.blocks[0].mlp.fc1.weight.fill_(1e38)
        trainer.model.backbone.blocks[0].mlp.fc1.bias.fill_(3e38)
    assert find_source(trainer, trainer.batches).startswith(
        "the output of module backbone.blocks.0.mlp.fc"
    )
