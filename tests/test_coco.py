"""COCO's layout: the drawn caption, the Lanczos square written out, odd and missing files."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ahpa.data.sampler import CursorLoader
from ahpa.data.shapes import draw
from ahpa.data.transforms import center_square
from ahpa.registry import DATASETS, ConfigError, UserError, build
from ahpa.testing.data import check_dataset

COUNT = 12


def name(i):
    return f"COCO_train2014_{i:012d}.jpg"


@pytest.fixture
def coco(tmp_path):
    """A folder as COCO 2014 is unpacked: pictures of several sizes and modes, five captions each
    (one has six)."""
    base = tmp_path / "coco"
    (base / "train2014").mkdir(parents=True)
    (base / "annotations").mkdir()
    images, annotations = [], []
    for i in range(COUNT):
        number = 1000 - 7 * i  # the ids are no order
        drawn = Image.fromarray(draw(i % 10, np.random.default_rng(i), 96))
        picture = drawn.resize((96 + 8 * i, 80 + i % 3)).convert("L" if i == 3 else "RGB")
        picture.save(base / "train2014" / name(i), quality=95)
        size = dict(height=picture.height, width=picture.width)
        images.append(dict(id=number, file_name=name(i), license=1, **size))
        for k in range(6 if i == 2 else 5):
            words = f" caption {k} of picture {i} .\n"
            annotations.append(dict(image_id=number, id=len(annotations), caption=words))
    annotations.reverse()
    write(base, dict(info={}, licenses=[], images=images, annotations=annotations))
    return base


def write(base, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (base / "annotations" / "captions_train2014.json").write_text(text)


def captions(base, **options):
    places = dict(
        images=str(base / "train2014"),
        annotations=str(base / "annotations" / "captions_train2014.json"),
    )
    return build(DATASETS, dict(type="CocoCaptions", **{**places, "resolution": 32, **options}))


def test_it_keeps_the_contract(coco):
    check_dataset(captions(coco), resolution=32)


def test_an_item(coco):
    data = captions(coco)
    assert len(data) == COUNT and [data.sample_id(i) for i in (0, 11)] == [name(0), name(11)]
    for i in range(COUNT):
        item = data[i]
        assert set(item) == {"image", "caption", "index"} and item["index"] == i
        assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.uint8
        assert item["caption"].endswith(f"of picture {i} .") and item["caption"].startswith(
            "caption "
        )
    with pytest.raises(IndexError, match=r"0\.\.11"):
        data[COUNT]


def test_one_of_the_captions_is_drawn_by_seed_epoch_and_index(coco):
    data, other = captions(coco), captions(coco, seed=1)
    drawn = [[data[i, epoch]["caption"] for epoch in range(60)] for i in range(COUNT)]
    assert drawn == [[data[i, epoch]["caption"] for epoch in range(60)] for i in range(COUNT)]
    for i, row in enumerate(drawn):
        assert set(row) == {f"caption {k} of picture {i} ." for k in range(6 if i == 2 else 5)}
        counts = [row.count(text) for text in set(row)]
        assert max(counts) < 30, "about a fifth each"
    first = [[text.split()[1] for text in row] for row in drawn]
    assert len({tuple(row) for row in first}) == COUNT, "pictures draw on their own"
    assert drawn != [[other[i, epoch]["caption"] for epoch in range(60)] for i in range(COUNT)]
    assert torch.equal(data[4]["image"], data[4, 7]["image"])


def lanczos(values, size):
    """One axis of a Lanczos-3 resize, written out: [n, ...] float -> [size, ...]; a reduction
    widens the kernel."""
    n = len(values)
    scale = n / size
    support = 3 * max(scale, 1)
    out = []
    for i in range(size):
        centre = (i + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(n, int(centre + support + 0.5))
        x = (np.arange(low, high) + 0.5 - centre) / max(scale, 1)
        weight = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        out.append(np.tensordot(weight / weight.sum(), values[low:high], 1))
    return np.stack(out)


@pytest.mark.parametrize("size", [(97, 64), (64, 97), (40, 41), (20, 25)], ids=str)
def test_the_square_is_the_centre_by_lanczos(size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = np.asarray(center_square(Image.fromarray(values), 32)).astype(int)
    side = min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    square = values[top : top + side, left : left + side].astype(float)
    # columns first, rounded in between, as PIL does
    rows = lanczos(square.transpose(1, 0, 2), 32).round().clip(0, 255)
    wanted = lanczos(rows.transpose(1, 0, 2), 32).round().clip(0, 255)
    assert found.shape == (32, 32, 3) and np.abs(found - wanted).max() <= 1
    assert np.mean(found == wanted) > 0.97


def test_files_are_prepared_that_way(coco):
    item = captions(coco)[5]["image"].permute(1, 2, 0).numpy()
    with Image.open(coco / "train2014" / name(5)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        wanted = square.resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(item, np.asarray(wanted))
    gray = captions(coco)[3]["image"]
    assert torch.equal(gray[0], gray[1])


def test_a_bad_or_missing_file_is_set_aside_and_the_next_takes_its_place(coco):
    (coco / "train2014" / name(4)).write_bytes(b"no picture")
    (coco / "train2014" / name(5)).unlink()
    data = captions(coco)
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        item = data[4, 3]
    assert item["index"] == 6 and item["caption"] == data[6, 3]["caption"]
    assert set(data.bad) == {4, 5}
    for i in (0, 1, 2, 3, *range(6, COUNT)):
        (coco / "train2014" / name(i)).write_bytes(b"")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(UserError, match="11 of 12 pictures cannot be read"),
    ):
        captions(coco)[0]


def test_a_batch_holds_a_list_of_captions(coco):
    loader = CursorLoader(
        dataset=captions(coco), batch=4, seed=0, rank=0, world=1, start=0, num_workers=1
    )
    batch = next(iter(loader))
    assert isinstance(batch["caption"], list) and len(batch["caption"]) == 4
    for text, i in zip(batch["caption"], batch["index"].tolist(), strict=True):
        assert text.endswith(f"of picture {i} .")


IMAGE = dict(id=1, file_name="a.jpg")
WORDS = dict(image_id=1, caption="b")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read"),
        ([], "not COCO's caption file"),
        (dict(images=[]), "'annotations'"),
        (dict(images=[], annotations=[]), "holds no captions"),
        (dict(images=[dict(id=1)], annotations=[]), "file_name"),
        (dict(images=[IMAGE], annotations=[dict(WORDS, image_id=2)]), "2"),
        (dict(images=[IMAGE], annotations=[dict(image_id=1, bbox=[0])]), "caption"),
        (dict(images=[dict(id=1, file_name="../a.jpg")], annotations=[WORDS]), "refused"),
        (dict(images=[IMAGE], annotations=[WORDS]), "none of the 1 images"),
    ],
    ids=str,
)
def test_annotations_of_another_shape(coco, content, message):
    write(coco, content)
    with pytest.raises(UserError, match=message):
        captions(coco)


def test_missing_places(coco):
    with pytest.raises(UserError, match="no folder of images at .*nowhere.*--demo"):
        captions(coco, images=str(coco / "nowhere"))
    with pytest.raises(UserError, match="no annotations at .*nowhere"):
        captions(coco, annotations=str(coco / "nowhere.json"))


@pytest.mark.parametrize(
    "wrong", [dict(resolution=7), dict(seed=-1), dict(max_bad_share=2)], ids=str
)
def test_wrong_options(coco, wrong):
    with pytest.raises(ConfigError, match=f"CocoCaptions.{next(iter(wrong))}: must be"):
        captions(coco, **wrong)


def test_a_demo_trains_on_it(coco, tmp_path):
    """`--demo --data`: the real pictures and captions, everything else small; and a mistake is one
    line."""
    from support.runs import scalars, train  # the engine; the other tests need the data room alone

    options = dict(iters=2, config="configs/mmdit.py")
    done = train(tmp_path / "run", "--data", str(coco), **options)
    assert "data: 12 images\n" in done.stdout and len(scalars(tmp_path / "run")) == 2
    os.rename(coco / "annotations", coco / "elsewhere")
    done = train(tmp_path / "run", "--data", str(coco), check=False, **options)
    assert done.returncode == 2 and "no annotations at" in done.stderr
    assert "Traceback" not in done.stderr
