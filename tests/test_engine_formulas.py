"""What one iteration of training computes, checked against formulas written out by hand.

Each test starts a tiny real run in this process and reads back its log and its checkpoints. Only
`run` below knows how a run is started and how its files are laid out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.poison import BadGradient
from support.runs import ROOT, TINY, scalars, stable
from test_configs import arguments
from torch import Tensor, nn

from ahpa.cli import train as cli
from ahpa.data.shapes import ShapesDataset
from ahpa.engine import checkpoint
from ahpa.engine.inference import load_generator
from ahpa.engine.pictures import make_grid
from ahpa.engine.runner import AlignmentRunner
from ahpa.losses.flow import FlowMatchingLoss
from ahpa.registry.contracts import Losses

Weights = dict[str, Tensor]
LR = 0.5
PLAIN_SGD = ("optim_wrapper.optimizer=dict(type='SGD', lr=0.5)", "optim_wrapper.clip_grad=None")


@dataclass
class MicroBatch:
    """What the loss of one micro-batch saw, and the gradient of that loss."""

    iteration: int
    progress: float
    index: list[int]
    images: Tensor
    t: Tensor
    noise: Tensor
    loss: Tensor
    gradient: Weights


class ProbeLoss(FlowMatchingLoss):
    """Flow matching that records every micro-batch; `change` may then spoil the loss."""

    def __init__(self, change: Callable[[Tensor, int], Tensor] | None = None):
        nn.Module.__init__(self)
        self.weights = {}
        self.change = change
        self.seen: list[MicroBatch] = []
        self.trained: dict[str, nn.Parameter] = {}  # a dict: no submodule, no state

    def forward(self, view):
        (term,) = super().forward(view).terms
        loss = term.value
        weights = list(self.trained.values())
        found = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        self.seen.append(
            MicroBatch(
                iteration=view.progress.iteration,
                progress=view.progress.share,
                index=view.clean.batch["index"].tolist(),
                images=view.clean.images.clone(),
                t=view.noised.t.clone(),
                noise=view.noised.noise["image"].clone(),
                loss=loss.detach(),
                gradient=dict(zip(self.trained, found, strict=True)),
            )
        )
        changed = self.change(loss, len(self.seen) - 1) if self.change else loss
        return Losses((term._replace(value=changed),))


@dataclass
class Run:
    """A finished run. Lists are indexed by the number of optimiser steps; entry 0 is the start."""

    folder: Path
    log: list[dict]
    trained: set[str]  # names of the trainable parameters, as in `model`
    model: list[Weights]  # the whole model
    backbone: list[Weights]
    ema: list[Weights]


def of_backbone(model: Weights) -> Weights:
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)}


def run(
    folder: Path,
    *options: str,
    iters: int,
    probe: ProbeLoss | None = None,
    config: str = "sit-b",
    resume: bool = False,
) -> Run:
    """Trains `iters` optimiser steps of a tiny demo with a checkpoint after each of them."""
    every = ["hooks.samples.interval=1000", "checkpoints.interval=1"]
    cfg = cli.training_config(
        arguments(
            ROOT / "configs" / f"{config}.py",
            demo=True,
            work_dir=str(folder),
            max_iters=iters,
            cfg_options=[*TINY, *every, "checkpoints.keep=100", *options],
        )
    )
    if probe is not None:
        cfg["model"]["flow_loss"] = probe
    runner = AlignmentRunner.from_config(cfg, resume=resume)
    network = runner.net
    if probe is not None:
        probe.flow = network.flow
        probe.trained = dict(network.backbone.named_parameters())
    models = [{name: value.clone() for name, value in network.state_dict().items()}]
    average = network.parts.ema.backbone.state_dict()
    averages = [{name: value.clone() for name, value in average.items()}]
    runner.train()
    for _, path in checkpoint.list_checkpoints(folder / "checkpoints"):
        state = checkpoint.load(path)
        models.append(state["model"])
        averages.append(state["ema"])
    return Run(
        folder=folder,
        log=scalars(folder),
        trained={name for name, _ in network.named_parameters()},
        model=models,
        backbone=[of_backbone(model) for model in models],
        ema=averages,
    )


def mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def norm(gradient: Weights) -> float:
    """The 2-norm over all parameters."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in gradient.values()))


def assert_close(actual: Weights, expected: Weights) -> None:
    assert expected, "nothing is compared"
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)


# ---- the average of the weights ----


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_ema_after_three_steps(tmp_path, decay):
    """d^3 w0 + (1 - d) (d^2 w1 + d w2 + w3)."""
    done = run(tmp_path, f"model.ema={decay}", *PLAIN_SGD, iters=3)
    w0, w1, w2, w3 = done.backbone
    new = 1 - decay
    assert_close(
        done.ema[3],
        {k: decay**3 * w0[k] + new * (decay**2 * w1[k] + decay * w2[k] + w3[k]) for k in w0},
    )
    assert any(not torch.allclose(w0[k], w3[k], atol=1e-3) for k in w0), "the weights hardly moved"


def test_ema_starts_as_the_weights(tmp_path):
    done = run(tmp_path, iters=1)
    assert_close(done.ema[0], done.backbone[0])


def test_sample_grids_show_the_ema(tmp_path):
    options = ["hooks.samples.interval=2", "hooks.samples.cfg_scale=1.0", "model.ema=0.5"]
    done = run(tmp_path, *options, *PLAIN_SGD, iters=2)
    with Image.open(done.folder / "samples" / "iter_000000002.png") as image:
        shown = np.asarray(image)
    pages = {}
    for weights in ("ema", "model"):
        generator = load_generator(done.folder, weights=weights)
        images = generator.sample([0, 0, 9, 9], steps=2, seed=0)
        pages[weights] = np.asarray(make_grid(images, columns=2))
    width = pages["ema"].shape[1]  # captions stand left of it
    assert np.array_equal(shown[:, -width:], pages["ema"])
    assert not np.array_equal(pages["model"], pages["ema"])


# ---- gradients, accumulation, clipping, decay ----


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_step_follows_the_mean_gradient_of_its_micro_batches(tmp_path, count):
    """w' = w - lr (g_1 + ... + g_n) / n; the log has the mean loss and the norm of the mean."""
    probe = ProbeLoss()
    options = [f"optim_wrapper.accumulative_counts={count}", *PLAIN_SGD]
    done = run(tmp_path, *options, iters=2, probe=probe)
    assert len(probe.seen) == 2 * count
    for step in range(2):
        micros = probe.seen[step * count : (step + 1) * count]
        gradient = {k: mean([m.gradient[k] for m in micros]) for k in probe.trained}
        before, after = done.backbone[step], done.backbone[step + 1]
        assert_close(after, {k: before[k] - LR * gradient[k] for k in gradient})
        assert done.log[step]["loss/flow"] == pytest.approx(float(mean([m.loss for m in micros])))
        assert done.log[step]["loss"] == pytest.approx(done.log[step]["loss/flow"])
        assert done.log[step]["grad_norm"] == pytest.approx(norm(gradient), rel=1e-4)


def test_micro_batches_have_their_own_samples_times_and_noise(tmp_path):
    probe = ProbeLoss()
    run(tmp_path, "optim_wrapper.accumulative_counts=2", iters=2, probe=probe)
    assert [micro.iteration for micro in probe.seen] == [0, 0, 1, 1]
    for i, one in enumerate(probe.seen):
        for other in probe.seen[i + 1 :]:
            assert not set(one.index) & set(other.index)
            assert not torch.isclose(one.t, other.t).any()
            assert not torch.isclose(one.noise, other.noise).all()


@pytest.mark.parametrize("limit", [0.01, 1000.0])
def test_clipping_scales_the_whole_gradient(tmp_path, limit):
    """w' = w - lr g min(1, limit / |g|); the log has |g| before clipping."""
    probe = ProbeLoss()
    done = run(tmp_path, *PLAIN_SGD, f"optim_wrapper.clip_grad={limit}", iters=1, probe=probe)
    gradient = probe.seen[0].gradient
    scale = min(1.0, limit / norm(gradient))
    assert (scale < 1) == (limit < 1)
    start = done.backbone[0]
    assert_close(done.backbone[1], {k: start[k] - LR * scale * gradient[k] for k in gradient})
    assert done.log[0]["grad_norm"] == pytest.approx(norm(gradient), rel=1e-4)


def test_weight_decay_shrinks_matrices_only(tmp_path):
    """Without gradients two steps of AdamW leave w (1 - lr decay)^2, and vectors as they are."""
    options = [
        "model.flow_loss=dict(type='FlowMatchingLoss', weights=dict(image=0.0))",
        "model.alignments.main.weight=0.0",
        "model.backbone.qk_norm=True",
        "optim_wrapper.optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5)",
    ]
    done = run(tmp_path, *options, iters=2, config="ahpa_sit-b")
    start = {name: done.model[0][name] for name in done.trained}
    shrunk = {name: value.ndim > 1 for name, value in start.items()}
    expected = {k: w * (1 - 0.1 * 0.5) ** 2 if shrunk[k] else w for k, w in start.items()}
    assert_close(done.model[2], expected)
    vectors = {name for name, value in start.items() if not shrunk[name] and value.abs().sum() > 0}
    assert any(name.endswith("bias") for name in vectors), "no bias could have shrunk"
    assert any("norm" in name for name in vectors), "no norm could have shrunk"


# ---- steps that are not finite ----


def spoil(at: Sequence[int], value: float) -> Callable[[Tensor, int], Tensor]:
    """Adds a constant to the loss of some micro-batches: their gradients stay as they are."""
    return lambda loss, micro: loss + value if micro in at else loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("count", "at"), [(1, 1), (2, 2), (2, 3)])
def test_a_non_finite_loss_with_finite_gradients_skips_the_step(tmp_path, count, at, value):
    """The second step is bad, whichever of its micro-batches is; the third goes on."""
    probe = ProbeLoss(spoil([at], value))
    options = [f"optim_wrapper.accumulative_counts={count}", *PLAIN_SGD]
    done = run(tmp_path, *options, iters=3, probe=probe)
    assert all(math.isfinite(norm(micro.gradient)) for micro in probe.seen)
    one, two, three = done.backbone[1:]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(two[name], three[name]) for name in two)
    assert [record["skipped_steps"] for record in done.log] == [0, 1, 1]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_logged_means_leave_skipped_steps_out(tmp_path, kind):
    """A line is the mean of the finite steps since the last line."""
    changes = {
        "loss": spoil([1], math.nan),
        "gradient": lambda loss, micro: BadGradient.apply(100 * loss) if micro == 1 else loss,
    }
    probe = ProbeLoss(changes[kind])
    done = run(tmp_path, "train_cfg.log_interval=4", *PLAIN_SGD, iters=4, probe=probe)
    (record,) = done.log
    kept = [micro for number, micro in enumerate(probe.seen) if number != 1]
    assert len(kept) == 3 and record["skipped_steps"] == 1
    assert record["loss/flow"] == pytest.approx(sum(float(micro.loss) for micro in kept) / 3)
    assert record["loss"] == pytest.approx(record["loss/flow"])
    assert record["grad_norm"] == pytest.approx(sum(norm(m.gradient) for m in kept) / 3, rel=1e-4)


def test_a_log_line_is_the_mean_since_the_line_before(tmp_path):
    probe = ProbeLoss()
    done = run(tmp_path, "train_cfg.log_interval=2", iters=5, probe=probe)
    losses = [float(micro.loss) for micro in probe.seen]
    assert [record["iteration"] for record in done.log] == [2, 4, 5]
    expected = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [record["loss/flow"] for record in done.log] == pytest.approx(expected)


def test_only_bad_steps_in_a_row_stop_a_run(tmp_path):
    """Two, one good one and two more do not reach a limit of three."""
    probe = ProbeLoss(spoil([0, 1, 3, 4], math.nan))
    done = run(tmp_path, "optim_wrapper.max_bad_steps=3", iters=6, probe=probe)
    assert [record["skipped_steps"] for record in done.log] == [1, 2, 2, 3, 4, 4]


# ---- progress and the order of samples ----


def test_a_schedule_sees_the_share_of_steps_already_done(tmp_path):
    """A weight that falls from 1 to 0 in four steps is 1, 3/4, 1/2 and 1/4 in them."""
    weight = "model.alignments.main.weight=dict(type='LinearSchedule', start=1.0, end=0.0)"
    done = run(tmp_path, weight, iters=4, config="ahpa_sit-b")
    shares = [record["loss/main/cosine"] / record["main/cosine"] for record in done.log]
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_progress_of_micro_batches_is_their_steps(tmp_path):
    probe = ProbeLoss()
    run(tmp_path, "optim_wrapper.accumulative_counts=2", iters=2, probe=probe)
    assert [micro.progress for micro in probe.seen] == [0.0, 0.0, 0.5, 0.5]


def test_images_are_scaled_to_the_unit_range(tmp_path):
    probe = ProbeLoss()
    run(tmp_path, "train_dataloader.dataset.length=4", iters=1, probe=probe)
    (micro,) = probe.seen
    dataset = ShapesDataset(resolution=64, length=4)
    pixels = torch.stack([dataset[index]["image"] for index in micro.index])
    torch.testing.assert_close(micro.images, pixels / 255)


def test_an_epoch_has_every_sample_once(tmp_path):
    probe = ProbeLoss()
    run(tmp_path, "train_dataloader.dataset.length=8", iters=4, probe=probe)
    order = [index for micro in probe.seen for index in micro.index]
    assert sorted(order[:8]) == sorted(order[8:]) == list(range(8))
    assert order[:8] != order[8:]


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    """The same samples, times and noise, and so the same weights, average and log."""
    whole, first, second = ProbeLoss(), ProbeLoss(), ProbeLoss()
    options = ["train_dataloader.dataset.length=8"]
    expected = run(tmp_path / "whole", *options, iters=4, probe=whole)
    run(tmp_path / "parts", *options, iters=2, probe=first)
    done = run(tmp_path / "parts", *options, iters=4, probe=second, resume=True)
    assert [micro.iteration for micro in second.seen] == [2, 3]
    for ours, theirs in zip(first.seen + second.seen, whole.seen, strict=True):
        assert ours.index == theirs.index
        assert torch.equal(ours.t, theirs.t) and torch.equal(ours.noise, theirs.noise)
    assert [micro.progress for micro in second.seen] == [0.5, 0.75]
    assert_close(done.backbone[-1], expected.backbone[-1])
    assert_close(done.ema[-1], expected.ema[-1])
    assert stable(done.folder) == stable(expected.folder)
