"""Class folders and zips: odd files, ADM's crop against a written-out one, unreadable files,
hostile archives, mirrors."""

import io
import os
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ahpa.data.images import PictureFiles
from ahpa.data.transforms import adm_center_crop, to_rgb
from ahpa.registry import DATASETS, ConfigError, UserError, build
from ahpa.testing.data import check_dataset


def folder(**options):
    return build(DATASETS, dict(type="ImageFolder", **{"resolution": 16, **options}))


def picture(side=(40, 30), seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))


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
    sixteen = (np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)
    Image.fromarray(sixteen).save(base / "cat" / "sixteen.png")
    picture((1, 1)).save(base / "dog" / "one.png")
    rgba = rgb.convert("RGBA")
    rgba.putalpha(0)
    rgba.save(base / "dog" / "deep" / "clear.webp", lossless=True)
    rgb.save(base / "dog" / "ünïcode 名.bmp")
    frames = [picture(seed=1), picture(seed=2)]
    frames[0].save(base / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    (base / "dog" / ".hidden.jpg").write_bytes(b"no")
    (base / "dog" / "notes.txt").write_text("no")
    return base


@pytest.mark.parametrize("flip", [False, True])
def test_it_keeps_the_contract(tree, flip):
    check_dataset(folder(root=str(tree), flip=flip), resolution=16)


def test_every_odd_kind_is_read(tree):
    data = folder(root=str(tree))
    assert data.classes == ("cat", "dog") and len(data) == 9
    items = {data.sample_id(i): data[i] for i in range(9)}
    for name, item in items.items():
        assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.uint8
        assert item["label"] == (0 if name.startswith("cat") else 1)
        assert data.sample_id(item["index"]) == name
    assert (items["dog/deep/clear.webp"]["image"] == 255).all(), "transparent means white"
    sixteen = items["cat/sixteen.png"]["image"]
    assert sixteen.max() > 200 and len(sixteen.unique()) > 50, "16 bits are scaled, not clipped"


def test_sixteen_bits_to_eight():
    image = Image.fromarray(np.array([[0, 257, 65535, 32896]], dtype=np.uint16))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_the_first_frame_of_an_animation_is_taken(tree):
    with Image.open(tree / "dog" / "moving.gif") as image:
        first = np.asarray(image.convert("RGB"))
        image.seek(1)
        second = np.asarray(image.convert("RGB"))
        assert np.array_equal(np.asarray(to_rgb(image)), first) and not np.array_equal(
            first, second
        )


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (64, 200), (65, 64), (1000, 131)])
def test_adm_crop_written_out(size):
    """Box halvings by the mean of 2 x 2, then a bicubic resize, then the centre."""
    image, resolution = picture(size, seed=3), 64
    array = image
    while min(array.size) >= 2 * resolution:
        array = array.resize((array.size[0] // 2, array.size[1] // 2), Image.BOX)
    scale = resolution / min(array.size)
    enlarged = (round(array.size[0] * scale), round(array.size[1] * scale))
    array = np.asarray(array.resize(enlarged, Image.BICUBIC))
    top, left = (array.shape[0] - resolution) // 2, (array.shape[1] - resolution) // 2
    ours = np.asarray(adm_center_crop(image, resolution))
    wanted = array[top : top + 64, left : left + 64]
    assert ours.shape == (64, 64, 3) and np.array_equal(ours, wanted)
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


@pytest.mark.parametrize(
    "name", ["../out.jpg", "/etc/x.jpg", "a/../../b.jpg", "..\\x.jpg", "C:/x.jpg"]
)
def test_a_zip_that_leads_out_is_refused(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="leads out of the archive"):
        folder(root=str(path))


def test_bad_pictures_are_set_aside_and_replaced(tree):
    contents = {
        "cat/broken.jpg": (tree / "cat" / "a.jpg").read_bytes()[:300],
        "cat/empty.png": b"",
        "cat/words.jpg": b"hi",
    }
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    data = folder(root=str(tree))
    bad = [i for i in range(len(data)) if data.sample_id(i) in contents]
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
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(UserError, match="11 of 12 pictures cannot be read"),
    ):
        data[0]


def test_a_class_without_any_readable_picture(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"no")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(UserError, match="no picture of the class 'cat'"),
    ):
        folder(root=str(tmp_path))[0]


@pytest.mark.parametrize(
    "place, message",
    [
        ("none", "no images at"),
        (".", "no class folders"),
        ("empty", "no pictures"),
        ("no.zip", "not a readable zip"),
    ],
)
def test_nothing_to_read_is_refused(tmp_path, place, message):
    picture().save(tmp_path / "loose.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=message):
        folder(root=str(tmp_path / place))


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
    assert len(imagenet) == len(imagenet.classes) == 1000
    assert imagenet[7]["image"].shape == (3, 256, 256)
    with zipfile.ZipFile(imagenet.root) as archive, archive.open(imagenet.names[7]) as file:
        wanted = np.asarray(Image.open(file).convert("RGB"))
    image = imagenet[7]["image"].permute(1, 2, 0).numpy()
    assert np.array_equal(image, wanted), "pictures of 256 px are unchanged"
    cifar = folder(root=str(shared / "data" / "cifar10-train.zip"), resolution=64)
    assert len(cifar) == 50_000 and len(cifar.classes) == 10 and cifar[49_999]["label"] == 9


def png(image):
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def huge_png(side):
    """A picture of one pixel whose header, with a right checksum, claims side x side."""
    data = bytearray(png(picture((1, 1))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("mode, order", [("I;16", "<"), ("I;16B", ">")])
def test_sixteen_bits_of_either_byte_order(tmp_path, mode, order):
    values = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    path = tmp_path / "x.tif"
    Image.frombytes(mode, (4, 1), values.astype(f"{order}u2").tobytes()).save(path)
    with Image.open(path) as image:
        assert np.asarray(to_rgb(image))[0, :, 2].tolist() == [0, 1, 255, 128]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "data, reason",
    [
        pytest.param(POSTSCRIPT, "cannot identify", id="postscript"),
        pytest.param(png(picture((3000, 1))), "768000 x 256", id="strip"),
        pytest.param(huge_png(50_000), "DecompressionBombError", id="huge"),
    ],
)
def test_pictures_that_would_harm_are_set_aside(tmp_path, data, reason):
    """PostScript would run Ghostscript, a strip and a huge size would fill the memory."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(data)
    picture().save(tmp_path / "cat" / "b.png")
    with pytest.warns(RuntimeWarning, match=f"cat/a.png cannot be read.*{reason}"):
        assert folder(root=str(tmp_path), resolution=256)[0]["index"] == 1


def test_a_wrong_extension_of_a_known_format_is_read(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(png(picture((16, 16))))
    image = folder(root=str(tmp_path))[0]["image"]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture((16, 16))))


def test_a_zip_bomb_is_refused_and_a_doubled_name_counts_once(tmp_path):
    bomb, doubled = tmp_path / "bomb.zip", tmp_path / "doubled.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("cat/a.png", bytes(65 << 20))
    with pytest.raises(UserError, match=r"refused: 'cat/a.png'"):
        folder(root=str(bomb))
    with zipfile.ZipFile(doubled, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cat/a.png", png(picture()))
        archive.writestr("cat/a.png", png(picture()))
    assert len(folder(root=str(doubled))) == 1


def test_a_zip_of_an_unknown_version_is_refused(tmp_path):
    path = tmp_path / "new.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/a.png", png(picture()))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 255  # version needed to extract: 25.5
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable zip"):
        folder(root=str(path))


def test_links_are_followed_but_not_in_circles(tree, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(tree / "cat", linked / "cat")
    os.symlink(tree / "dog", linked / "dog")
    names = folder(root=str(tree)).names
    assert folder(root=str(linked)).names == names
    os.symlink("..", tree / "dog" / "up")
    os.symlink(".", tree / "cat" / "here")
    assert folder(root=str(tree)).names == names
    os.symlink("itself", tree / "cat" / "itself")
    assert folder(root=str(tree)).names == names


@pytest.mark.parametrize(
    "wrong",
    [
        dict(resolution=4),
        dict(resolution=16.5),
        dict(seed=-1),
        dict(max_bad_share=5),
        dict(flip="no"),
    ],
    ids=str,
)
def test_mistakes_name_the_option(tree, wrong):
    with pytest.raises(ConfigError, match=f"ImageFolder.{next(iter(wrong))}: must be"):
        folder(root=str(tree), **wrong)


@pytest.mark.parametrize("index", [9, -1])
def test_there_is_no_picture_outside_the_set(tree, index):
    with pytest.raises(IndexError, match="outside 0..8"):
        folder(root=str(tree))[index]


@pytest.mark.parametrize("missing", [(), ("decode",), ("__getitem__",)])
def test_a_set_of_files_must_say_how_they_are_decoded(tmp_path, missing):
    methods = dict(
        decode=lambda self, index: np.zeros((8, 8, 3), np.uint8),
        __getitem__=lambda self, key: dict(index=self.read(key)[0]),
    )
    own = {name: method for name, method in methods.items() if name not in missing}
    kind = type("Own", (PictureFiles,), own)
    options = dict(root=tmp_path, names=["a", "b"], resolution=8, seed=0, max_bad_share=0.0)
    if not missing:
        assert kind(**options)[1] == dict(index=1)
        return
    with pytest.raises(TypeError, match=missing[0]):
        kind(**options)
