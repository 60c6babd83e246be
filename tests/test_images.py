"""Class folders and zips: odd files, ADM's crop against a written-out one, quarantine, mirrors; and the sampler's order."""

import itertools
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ahpa.data.sampler import CursorLoader, CursorSampler
from ahpa.data.shapes import ShapesDataset
from ahpa.data.transforms import adm_center_crop, to_rgb
from ahpa.registry import DATASETS, UserError, build


def folder(**options):
    return build(DATASETS, dict(type="ImageFolder", **{"resolution": 16, **options}))


def picture(side=(40, 30), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path):
    """Every odd kind of picture that can be read, in two classes."""
    base = tmp_path / "set"
    for name in ("cat", "dog/deep"):
        (base / name).mkdir(parents=True)
    rgb = picture()
    rgb.save(base / "cat" / "a.jpg")
    rgb.convert("L").save(base / "cat" / "gray.png")
    rgb.convert("P").save(base / "cat" / "palette.PNG")
    rgb.convert("CMYK").save(base / "cat" / "cmyk.jpeg")
    Image.fromarray((np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)).save(base / "cat" / "sixteen.png")
    picture((1, 1)).save(base / "dog" / "one.png")
    rgba = rgb.convert("RGBA")
    rgba.putalpha(0)
    rgba.save(base / "dog" / "deep" / "clear.webp", lossless=True)
    rgb.save(base / "dog" / "ünïcode 名.bmp")
    picture(seed=1).save(base / "dog" / "moving.gif", save_all=True, append_images=[picture(seed=2)])
    (base / "dog" / ".hidden.jpg").write_bytes(b"no")
    (base / "dog" / "notes.txt").write_text("no")
    return base


def test_every_odd_kind_is_read(tree):
    data = folder(root=str(tree))
    assert data.classes == ("cat", "dog") and len(data) == 9
    items = {data.sample_id(i): data[i] for i in range(9)}
    for name, item in items.items():
        assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.uint8
        assert item["label"] == (0 if name.startswith("cat") else 1) and data.sample_id(item["index"]) == name
    assert (items["dog/deep/clear.webp"]["image"] == 255).all(), "transparent means white"
    sixteen = items["cat/sixteen.png"]["image"]
    assert sixteen.max() > 200 and len(sixteen.unique()) > 50, "16 bits are scaled, not clipped"


def test_sixteen_bits_to_eight():
    image = Image.fromarray(np.array([[0, 257, 65535, 32896]], dtype=np.uint16))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (64, 200), (65, 64), (1000, 131)])
def test_adm_crop_written_out(size):
    """Box halvings by the mean of 2 x 2, then a bicubic resize, then the centre."""
    image, resolution = picture(size, seed=3), 64
    array = image
    while min(array.size) >= 2 * resolution:
        array = array.resize((array.size[0] // 2, array.size[1] // 2), Image.BOX)
    scale = resolution / min(array.size)
    array = np.asarray(array.resize((round(array.size[0] * scale), round(array.size[1] * scale)), Image.BICUBIC))
    top, left = (array.shape[0] - resolution) // 2, (array.shape[1] - resolution) // 2
    ours = np.asarray(adm_center_crop(image, resolution))
    assert ours.shape == (64, 64, 3) and np.array_equal(ours, array[top : top + 64, left : left + 64])
    if size == (256, 256):  # two exact halvings and nothing else: block means
        halved = np.asarray(image).astype(float)
        for _ in range(2):
            side = halved.shape[0] // 2
            halved = np.floor(halved.reshape(side, 2, side, 2, 3).mean((1, 3)) + 0.5)
        assert np.abs(halved - ours).max() <= 2  # PIL rounds after each direction


def zipped(tree, path, top=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in tree.rglob("*") if p.is_file()):
            archive.write(file, f"{top}{file.relative_to(tree)}")
        archive.writestr("__MACOSX/cat/._a.jpg", b"no")
    return str(path)


@pytest.mark.parametrize("top", ["", "train/", "data/train/"])
def test_a_zip_is_the_same_as_its_folder(tree, tmp_path, top):
    plain, packed = folder(root=str(tree)), folder(root=zipped(tree, tmp_path / "set.zip", top))
    assert packed.classes == plain.classes and packed.names == plain.names
    for i in range(len(plain)):
        assert torch.equal(plain[i]["image"], packed[i]["image"])
    assert torch.equal(pickle.loads(pickle.dumps(packed))[3]["image"], plain[3]["image"])


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/x.jpg", "a/../../b.jpg", "..\\x.jpg", "C:/x.jpg"])
def test_a_zip_that_leads_out_is_refused(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="leads out"):
        folder(root=str(path))


def test_bad_pictures_are_put_aside_and_replaced(tree):
    for name, data in (
        ("broken.jpg", (tree / "cat" / "a.jpg").read_bytes()[:300]),
        ("empty.png", b""),
        ("words.jpg", b"hi"),
    ):
        (tree / "cat" / name).write_bytes(data)
    data = folder(root=str(tree))
    bad = [i for i in range(len(data)) if data.sample_id(i) in ("cat/broken.jpg", "cat/empty.png", "cat/words.jpg")]
    for i in bad:
        with pytest.warns(RuntimeWarning, match="cannot be read"):
            item = data[i]
        assert item["label"] == 0 and item["index"] not in bad
        assert torch.equal(item["image"], data[i]["image"]), "the replacement is always the same"
    assert set(data.bad) == set(bad)


def test_too_many_bad_pictures_stop_the_run(tmp_path):
    (tmp_path / "cat").mkdir()
    picture().save(tmp_path / "cat" / "z.jpg")
    for i in range(11):
        (tmp_path / "cat" / f"{i:02d}.jpg").write_bytes(b"no")
    data = folder(root=str(tmp_path))
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="11 of 12 pictures cannot be read"):
        data[0]


def test_a_class_without_any_readable_picture(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"no")
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="no picture of the class 'cat'"):
        folder(root=str(tmp_path))[0]


def test_nothing_to_read_is_told(tmp_path):
    picture().save(tmp_path / "loose.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    for root, word in ((tmp_path / "none", "no images at"), (tmp_path, "no class folders"), (tmp_path / "empty", "no pictures"),
                       (tmp_path / "no.zip", "no readable zip")):  # fmt: skip
        with pytest.raises(UserError, match=word):
            folder(root=str(root))


def test_mirrors_are_a_coin_of_seed_epoch_and_index(tree):
    plain, mirrored = folder(root=str(tree)), folder(root=str(tree), flip=True)
    coins = []
    for epoch in range(40):
        image = mirrored[0, epoch]["image"]
        assert torch.equal(image, mirrored[0, epoch]["image"])
        coins.append(torch.equal(image, plain[0]["image"].flip(-1)))
        assert coins[-1] or torch.equal(image, plain[0]["image"])
    assert 10 < sum(coins) < 30


def test_real_archives(shared):
    imagenet = folder(root=str(shared / "data" / "imagenet256-sample.zip"), resolution=256)
    assert len(imagenet) == len(imagenet.classes) == 1000 and imagenet[7]["image"].shape == (3, 256, 256)
    with (
        zipfile.ZipFile(shared / "data" / "imagenet256-sample.zip") as archive,
        archive.open(imagenet.names[7]) as file,
    ):
        wanted = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(imagenet[7]["image"].permute(1, 2, 0).numpy(), wanted), "256 px pictures come as they are"
    cifar = folder(root=str(shared / "data" / "cifar10-train.zip"), resolution=64)
    assert len(cifar) == 50_000 and len(cifar.classes) == 10 and cifar[49_999]["label"] == 9


# ---- the sampler ----


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
    """400k iterations into an ImageNet-sized set: two permutations at most, no sample is asked for."""
    first = take(2, size=1_281_167, batch=256, start=400_000 * 256)
    assert first[0][1] == 400_000 * 256 // 1_281_167


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_stream_whatever_the_workers(workers):
    data = ShapesDataset(length=10, resolution=8)
    loader = CursorLoader(dataset=data, batch=4, seed=3, rank=0, world=1, start=6, num_workers=workers)
    seen = [i for batch in itertools.islice(loader, 4) for i in batch["index"].tolist()]
    assert seen == [i for i, _ in take(16, seed=3, start=6)]


def test_sampler_mistakes():
    for wrong in (dict(size=0), dict(batch=0), dict(rank=2, world=2), dict(start=-1)):
        with pytest.raises(ValueError, match="CursorSampler"):
            CursorSampler(**{"size": 10, "batch": 4, **wrong})
