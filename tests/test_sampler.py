"""The stream of samples: one order for any number of processes and workers, from any start; each
epoch a permutation."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ahpa.data.sampler import CursorLoader, CursorSampler, permutation
from ahpa.data.shapes import ShapesDataset
from ahpa.registry import DATASETS, ConfigError, build


def take(count, **options):
    return list(itertools.islice(CursorSampler(**{"size": 10, "batch": 4, **options}), count))


def test_each_epoch_is_a_permutation_and_another_one():
    stream = take(30)
    for epoch in range(3):
        part = stream[10 * epoch : 10 * epoch + 10]
        assert sorted(i for i, _ in part) == list(range(10)) and {e for _, e in part} == {epoch}
    assert [i for i, _ in stream[:10]] != [i for i, _ in stream[10:20]]
    assert take(30) == stream != take(30, seed=1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_order_is_the_same_for_any_number_of_processes(world):
    batch = 8 // world
    parts = [take(6 * batch, batch=batch, rank=rank, world=world) for rank in range(world)]
    order = [pair for i in range(6) for part in parts for pair in part[i * batch : (i + 1) * batch]]
    assert order == take(48, batch=8)


@pytest.mark.parametrize("start", [0, 4, 8, 12, 400])
def test_starting_anywhere_is_skipping(start):
    assert take(20, start=start) == take(start + 20)[start:]


def test_a_late_start_reads_nothing_and_is_quick_to_reach():
    """400k iterations into an ImageNet-sized set: two permutations at most, no sample is read."""
    first = take(2, size=1_281_167, batch=256, start=400_000 * 256)
    assert first[0][1] == 400_000 * 256 // 1_281_167


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_stream_whatever_the_workers(workers):
    data = ShapesDataset(length=10, resolution=8)
    loader = CursorLoader(
        dataset=data, batch=4, seed=3, rank=0, world=1, start=6, num_workers=workers
    )
    seen = [i for batch in itertools.islice(loader, 4) for i in batch["index"].tolist()]
    assert seen == [i for i, _ in take(16, seed=3, start=6)]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    """Drawing from torch's global generator or another sampler in between changes nothing; a copy
    continues alike."""
    wanted = take(25)
    torch.manual_seed(5)
    assert take(25) == wanted
    copy = pickle.loads(pickle.dumps(CursorSampler(size=10, batch=4)))
    assert list(itertools.islice(copy, 25)) == wanted
    swapped = permutation(50, 0, 1), permutation(50, 1, 0)
    assert not torch.equal(*swapped), "seed and epoch are not interchangeable"
    places = torch.stack([permutation(8, 0, epoch) for epoch in range(2000)])  # [2000, 8]
    # how often each index is in each place: 250 expected
    counts = torch.stack([(places == i).sum(0) for i in range(8)]).double()
    assert ((counts - 250).abs() < 6 * (2000 / 8 * 7 / 8) ** 0.5).all()


def test_a_batch_larger_than_the_set():
    stream = take(14, size=3, batch=7)
    assert [epoch for _, epoch in stream] == [p // 3 for p in range(14)]
    assert sorted(i for i, _ in stream[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_gives_the_same_stream_whatever_the_workers(tmp_path, workers, recwarn):
    (tmp_path / "cat").mkdir()
    for i in range(6):
        Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no")
    data = build(DATASETS, dict(type="ImageFolder", root=str(tmp_path), resolution=8, flip=True))
    loader = CursorLoader(
        dataset=data, batch=3, seed=0, rank=0, world=1, start=0, num_workers=workers
    )
    batches = list(itertools.islice(loader, 4))
    wanted = [3 if i == 2 else i for i, _ in take(12, size=6, batch=3)]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == wanted
    pixels = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches])
    assert pixels.tolist() == [40 * i for i in wanted]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(size=0),
        dict(batch=0),
        dict(rank=2, world=2),
        dict(start=-1),
        dict(seed=-1),
        dict(world=0),
        dict(batch=2.5),
    ],
    ids=str,
)
def test_sampler_mistakes(wrong):
    with pytest.raises(ConfigError, match=f"CursorSampler.{next(iter(wrong))}: must be"):
        CursorSampler(**{"size": 10, "batch": 4, **wrong})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_draws_one_number_from_the_global_random_state(workers):
    """As torch's DataLoader does; a run restores its random state after this."""
    loader = CursorLoader(
        dataset=ShapesDataset(length=10, resolution=8),
        batch=4,
        seed=3,
        rank=0,
        world=1,
        start=0,
        num_workers=workers,
    )
    torch.manual_seed(5)
    batches = iter(loader)
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(torch.get_rng_state(), drawn)
    next(batches)
    assert torch.equal(torch.get_rng_state(), drawn), "the batches themselves draw nothing"
