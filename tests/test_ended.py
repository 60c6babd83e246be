"""Alignments whose weight is 0 from here on are no longer computed, and nothing else changes."""

import pytest
from support.runs import ROOT, assert_same_state, final_state, scalars, train
from test_distributed import run as run_on_two

from ahpa.alignment.routed import RoutedAlignment
from ahpa.cli import train as command
from ahpa.engine.assembly import build_model
from ahpa.priors.vision import VisionEncoder
from ahpa.registry.contracts import Progress

CONFIG = "configs/repa_sit-b_weight-stop.py"
STOP = "model.alignments.main.weight.until_step=2"


def test_the_rest_of_the_run_is_the_same_without_it(tmp_path, monkeypatch):
    """REPA that stops after 2 of 4 steps: its teacher runs twice, and model, average, optimiser and
    total loss are equal to the bit to those of a run that computes it to the end."""
    seen = []
    whole = VisionEncoder.from_clean

    def counted(self, clean, levels):
        seen.append(levels)
        return whole(self, clean, levels)

    monkeypatch.setattr(VisionEncoder, "from_clean", counted)
    done = train(tmp_path / "a", config=CONFIG, iters=4, options=[STOP])
    assert len(seen) == 2
    said = "model.alignments.main: the weight is 0 from step 2 on; it is no longer computed"
    assert said in done.stdout + done.stderr
    monkeypatch.setattr(RoutedAlignment, "ended", lambda self, progress: False)
    train(tmp_path / "b", config=CONFIG, iters=4, options=[STOP])
    assert len(seen) == 2 + 4
    assert_same_state(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    ours, theirs = scalars(tmp_path / "a"), scalars(tmp_path / "b")
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert ["loss/main/cosine" in line for line in ours] == [True, True, False, False]


def demo_of(config, *options):
    """The model of a config's demo."""
    words = [str(ROOT / "configs" / f"{config}.py"), "--demo"]
    words += ["--cfg-options", *options] if options else []
    return build_model(command.training_config(command.parse(words))["model"])


def test_taps_and_levels_that_nothing_else_reads_are_dropped():
    """HASTE ends as a whole; with AHPA beside REPA, only REPA's teacher goes."""
    ends = [f"model.alignments.{name}.weight.until_step=5" for name in ("main", "attention")]
    haste = demo_of("haste_sit-b", *ends)
    assert len(haste.taps) == 3 and haste.drop_ended(Progress(4, 10)) == []
    assert haste.drop_ended(Progress(5, 10)) == ["attention", "main"]
    assert haste.taps == frozenset() and haste.parts.wanted == {"dino": ()}
    assert haste.drop_ended(Progress(6, 10)) == []

    both = demo_of("ahpa-repa_sit-b")
    names = list(both.alignments)
    first, second = (both.alignments[name] for name in names)
    second.ended = lambda progress: True
    wanted = dict(both.parts.wanted)
    assert both.drop_ended(Progress(0, 10)) == [names[1]] and both.taps == first.taps
    (kept,), (gone,) = first.reads, second.reads
    assert both.parts.wanted == {kept: wanted[kept], gone: ()}


@pytest.mark.slow
def test_two_processes_go_on_without_it(tmp_path):
    """All processes must have a gradient of every parameter in every step."""
    run_on_two(tmp_path, config=CONFIG, iters=4, options=[STOP])
    assert [line["iteration"] for line in scalars(tmp_path)] == [1, 2, 3, 4]
