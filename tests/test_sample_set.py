"""Samples for evaluation: bit-equal for any batch, number of processes, number of samples and
resume; other options are refused; exported whole."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import ROOT, environment
from test_generator import generator as toy_generator

from ahpa.analysis.protocols import SamplingProtocol, load_protocol, sampling_record
from ahpa.analysis.sample_set import (
    Drawing,
    SampleSet,
    draw_set,
    export,
    label_of,
    part_path,
    recorded,
)
from ahpa.engine.assembly import build_generator_parts
from ahpa.engine.distributed import Processes
from ahpa.registry import ConfigError, UserError
from ahpa.registry.locations import shipped_names
from ahpa.sampling.generator import Generator

SIT = dict(type="SiT", depth=2, hidden_size=64, num_heads=2, patch_size=2, num_classes=10)
MODEL = dict(resolution=32, tokenizer=dict(type="KLAutoencoder", source="bundled"), backbone=SIT)


def sit():
    """A transformer with weights away from their initial values, whose products do not round alike
    for every shape, and the bundled autoencoder."""
    torch.manual_seed(0)
    parts = build_generator_parts(MODEL)
    parts.tokenizer.load()
    for part in (parts.tokenizer, parts.backbone):
        part.eval().requires_grad_(False)
    for p in parts.backbone.parameters():
        p.add_(0.05 * torch.randn_like(p))
    return Generator(
        tokenizer=parts.tokenizer,
        backbone=parts.backbone,
        flow=parts.flow,
        conditioner=parts.conditioner,
    )


def plan(**changes):
    own = dict(count=11, sampler="sde", steps=3, cfg_scale=2.0, tile=4, balance="drawn")
    return SamplingProtocol(**{**own, **changes})


def pixels(images):
    return np.stack(list(images.read(range(len(images)))))


@pytest.fixture(scope="module")
def model():
    return sit()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "set"
    return pixels(draw_set(folder, Drawing(model, plan(), seed=3)))


# ---- the same images --------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (8, 2), (1000, 1)])
def test_no_batch_and_no_number_of_threads_changes_a_bit(model, whole, tmp_path, batch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images = draw_set(tmp_path / "set", Drawing(model, plan(), seed=3), batch=batch)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(pixels(images), whole)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(model, whole, tmp_path, count):
    small = draw_set(tmp_path / "set", Drawing(model, plan(count=count), seed=3))
    assert np.array_equal(pixels(small), whole[:count])
    larger = draw_set(tmp_path / "set", Drawing(model, plan(), seed=3))
    assert np.array_equal(pixels(larger), whole)
    again = draw_set(tmp_path / "set", Drawing(model, plan(count=count), seed=3))
    assert len(again) == count and len(SampleSet(tmp_path / "set")) == 11


@pytest.mark.parametrize("world", [2, 3])
def test_no_number_of_processes_changes_a_bit(model, whole, tmp_path, world):
    """Threads stand for processes, each with a model of its own; real ones are tested below."""
    shared = FakeProcesses(world)
    models = [model, *[sit() for _ in range(world - 1)]]

    def work(rank):
        drawing = Drawing(models[rank], plan(), seed=3)
        draw_set(tmp_path / "set", drawing, processes=shared.member(rank), batch=4)

    shared.run(work)
    assert np.array_equal(pixels(SampleSet(tmp_path / "set")), whole)


def test_the_batches_that_are_not_stored_are_the_same(model, whole):
    found = {}
    for rank in range(2):
        for batch in Drawing(model, plan(), seed=3).batches(Processes(rank=rank, world=2)):
            found |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
    stacked = torch.stack([found[i] for i in range(11)]).permute(0, 2, 3, 1)
    assert np.array_equal(stacked.numpy(), whole)


def test_a_set_that_lost_parts_is_completed_and_nothing_else_is_drawn(model, whole, tmp_path):
    drawing = Drawing(model, plan(), seed=3)
    draw_set(tmp_path / "set", drawing)
    part_path(tmp_path / "set", 1).unlink()
    kept = part_path(tmp_path / "set", 0).stat().st_mtime_ns
    with pytest.raises(UserError, match="1 of 3 parts are missing"):
        SampleSet(tmp_path / "set")
    assert np.array_equal(pixels(draw_set(tmp_path / "set", drawing)), whole)
    assert part_path(tmp_path / "set", 0).stat().st_mtime_ns == kept


class FakeProcesses:
    """Processes that are threads of this one; every exchange waits for all."""

    def __init__(self, world):
        self.world = world
        self.barrier = threading.Barrier(world, timeout=60)
        self.values = [None] * world

    def member(self, rank):
        outer = self

        class Member(Processes):
            several = True

            def gather(self, value):
                outer.values[rank] = value
                outer.barrier.wait()
                found = list(outer.values)
                outer.barrier.wait()
                return found

            def from_first(self, value):
                return self.gather(value)[0]

        return Member(rank=rank, world=self.world)

    def run(self, work):
        errors = []

        def guarded(rank):
            try:
                work(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


SCRIPT = """
import sys
from pathlib import Path
from test_sample_set import plan, sit
from ahpa.analysis.sample_set import Drawing, draw_set
from ahpa.engine.distributed import Processes
group = Processes.start(sys.argv[2])
draw_set(Path(sys.argv[1]), Drawing(sit(), plan(count=int(sys.argv[3])), seed=3), processes=group,
         batch=4)
"""


@pytest.mark.slow
def test_real_processes_killed_and_continued(whole, tmp_path):
    """One process is killed -9 in the middle of 4,000 images; two others continue a copy."""
    script = tmp_path / "draw.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "set"
    options = dict(cwd=ROOT, env=environment())
    first = subprocess.Popen([sys.executable, script, folder, "none", "4000"], **options)
    end = time.time() + 120
    while not part_path(folder, 1).exists() and time.time() < end:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert part_path(folder, 1).exists() and not part_path(folder, 999).exists()
    record = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps({**record, "count": 1}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run([*launcher, script, folder, "pytorch", "11"], timeout=300, **options)
    assert done.returncode == 0
    assert np.array_equal(pixels(SampleSet(folder, count=11)), whole)


# ---- which classes ----------------------------------------------------------------------------


def test_labels_are_balanced_or_drawn_and_do_not_depend_on_the_number():
    assert [label_of(i, 3, "balanced", 7) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    drawn = [label_of(i, 10, "drawn", 7) for i in range(10_000)]
    assert drawn[:500] == [label_of(i, 10, "drawn", 7) for i in range(500)]
    assert drawn != [label_of(i, 10, "drawn", 8) for i in range(10_000)]
    counts = np.bincount(drawn, minlength=10)
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 27.9  # 99.9 % of 9 degrees of freedom
    assert (counts != 1000).any()


def test_only_classes_with_names_are_drawn(model):
    named = Generator(
        tokenizer=model.tokenizer,
        backbone=model.backbone,
        flow=model.flow,
        conditioner=model.conditioner,
        classes=("a", "b"),
    )
    assert Drawing(named, plan()).kinds == [0, 1]


# ---- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "seed", "named"),
    [
        (dict(steps=4), 3, "steps: 3 against 4"),
        (dict(cfg_scale=1.5), 3, "guidance.scale: 2.0 against 1.5"),
        (dict(tile=5), 3, "tile: 4 against 5"),
        (dict(balance="balanced"), 3, "classes.balance: drawn against balanced"),
        (dict(uint8="truncate"), 3, "uint8: round against truncate"),
        ({}, 4, "seed: 3 against 4"),
    ],
    ids=str,
)
def test_a_started_set_with_other_options_is_refused(model, tmp_path, changes, seed, named):
    draw_set(tmp_path / "set", Drawing(model, plan(count=1), seed=3))
    before = sorted(path.name for path in (tmp_path / "set").rglob("*"))
    with pytest.raises(UserError, match=named):
        draw_set(tmp_path / "set", Drawing(model, plan(**changes), seed=seed))
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == before


def test_another_model_is_refused(model, tmp_path):
    draw_set(tmp_path / "set", Drawing(model, plan(count=1)))
    other = sit()
    next(other.backbone.parameters()).add_(1e-6)
    with pytest.raises(UserError, match="network_sha256"):
        draw_set(tmp_path / "set", Drawing(other, plan(count=1)))


def test_a_folder_with_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        draw_set(tmp_path, Drawing(model, plan()))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_part_that_cannot_be_written_is_a_users_mistake_on_every_process(model, tmp_path):
    (tmp_path / "set").mkdir()
    drawing = Drawing(model, plan(count=1))
    draw_set(tmp_path / "set", drawing)
    part_path(tmp_path / "set", 0).unlink()
    (tmp_path / "set" / "tiles").rmdir()
    (tmp_path / "set" / "tiles").write_text("in the way")
    with pytest.raises(UserError, match="could not write"):
        draw_set(tmp_path / "set", drawing)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.zeros((3, 32, 32, 3), np.uint8)),
    ],
    ids=["cut", "empty", "other size"],
)
def test_a_damaged_part_is_named(model, tmp_path, spoil):
    images = draw_set(tmp_path / "set", Drawing(model, plan(count=1)))
    spoil(part_path(tmp_path / "set", 0))
    with pytest.raises(UserError, match="000000.npy"):
        pixels(images)


# ---- other formats ----------------------------------------------------------------------------


def test_an_archive_and_a_folder_hold_the_images_with_their_protocol(model, whole, tmp_path):
    images = draw_set(tmp_path / "set", Drawing(model, plan(), seed=3), protocol={"iteration": 7})
    export(images, tmp_path / "all.npz")
    export(images, tmp_path / "pictures")
    with np.load(tmp_path / "all.npz") as archive:
        assert np.array_equal(archive["arr_0"], whole)
        labels = [label_of(i, 10, "drawn", 3) for i in range(11)]
        assert archive["arr_1"].tolist() == labels and archive["arr_1"].dtype == np.int64
    paths = sorted((tmp_path / "pictures").glob("*.png"))
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in paths]), whole)
    for path in (tmp_path / "all.npz", tmp_path / "pictures"):
        protocol, provenance = recorded(path)
        assert protocol == images.protocol and protocol["iteration"] == 7
        assert provenance["sampling_seed"] == 3
    assert recorded(tmp_path) is None


# ---- protocols --------------------------------------------------------------------------------


def test_the_named_protocols_are_those_of_the_field():
    assert shipped_names("protocols") == ["adm-50k-ode250", "adm-50k-sde250", "demo"]
    sde, ode = load_protocol("adm-50k-sde250"), load_protocol("adm-50k-ode250")
    assert (sde.count, sde.sampler, sde.steps, sde.cfg_scale) == (50_000, "sde", 250, 1.0)
    assert sde.changed({"sampler": "euler", "description": ode.description}) == ode
    assert sde.balance == "drawn" and sde.count % sde.tile == 0


def test_the_record_names_the_times_at_which_the_network_is_called():
    parts = toy_generator()
    sde = sampling_record(parts, load_protocol("adm-50k-sde250"))
    ode = sampling_record(parts, load_protocol("adm-50k-ode250"))
    heun = sampling_record(parts, plan(sampler="heun", steps=3))
    assert sde["evaluations"] == ode["evaluations"] == 250 and heun["evaluations"] == 5
    assert (sde["times"]["first"], sde["times"]["last"]) == (1.0, 0.04)
    assert (ode["times"]["first"], ode["times"]["last"]) == (1.0, 0.004)
    shifted = plan(sampler=dict(type="sde", shift=2.0))
    assert sampling_record(parts, shifted)["times"] != sampling_record(parts, plan())["times"]
    adaptive = sampling_record(parts, plan(sampler="dopri5"))
    assert adaptive["evaluations"] == adaptive["steps"] == "adaptive"
    same = plan(sampler=dict(type="sde", shift=1.0))
    assert sampling_record(parts, same) == sampling_record(parts, plan())


def test_options_without_effect_are_not_recorded():
    parts = toy_generator()
    one = sampling_record(parts, plan(cfg_scale=1.0, cfg_interval=(0.0, 0.7), cfg_channels=3))
    assert one == sampling_record(parts, plan(cfg_scale=1.0))
    assert sampling_record(parts, plan(cfg_channels=3))["guidance"]["channels"] == 3


def test_the_record_holds_the_latents_and_the_decoder(model):
    record = sampling_record(model, plan())
    factor = model.tokenizer.factor.flatten().tolist()
    assert record["latents"]["scale"] == pytest.approx(factor, rel=1e-6)
    assert len(record["decoder"]["weights_sha256"]) == 64 and record["resolution"] == 32
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": 3}', "needs the option 'count'"),
        ('{"count": 3, "step": 3}', "no option 'step'.*steps"),
        ('{"count": 0}', "count: must be a positive integer"),
        ('{"count": 3, "sampler": "eular"}', "euler"),
        ('{"count": 3, "cfg_interval": [0.7, 0]}', "low <= high"),
        ('{"count": 3, "uint8": "floor"}', "uint8"),
        ('{"count": 3, "metrics": "fid"}', "metrics: must be a list"),
        ('{"count": 3, "metrics": [{"extractor": "tiny-vit"}]}', "objects with a 'type'"),
        ('{"count": "many"}', "count"),
        ("[]", "object"),
        ("{", "cannot be read"),
    ],
)
def test_mistakes_in_a_protocol_file(tmp_path, text, message):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_protocol(str(path))


def test_an_unknown_protocol_and_a_wrong_option():
    with pytest.raises(UserError, match="adm-50k-sde250"):
        load_protocol("adm-50k-sde25")
    with pytest.raises(ConfigError, match="tile"):
        load_protocol("demo").changed({"tile": 0})
