"""Sets of images: ADM's .npz, .npy, folders and zips, in constant memory and whole or not at all;
the rules by which floats become 8 bits; references; from images to figures over processes."""

import io
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import call, tool

from ahpa.evaluation import inception, make_reference
from ahpa.evaluation.collect import collect, evaluate_images, load_extractors
from ahpa.evaluation.images import (
    UINT8_RULES,
    Batch,
    open_images,
    read_prompts,
    share,
    to_uint8,
    write_npz,
)
from ahpa.evaluation.metrics import build_metrics
from ahpa.evaluation.reference import Reference
from ahpa.registry import ConfigError, UserError


def pixels(count, side=16, seed=0):
    """Random images, uint8 [N, H, W, 3]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def save_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def stored(kind, images, base):
    """Store images in one of the ways."""
    place = base / kind
    if kind.endswith(".npz"):
        (np.savez_compressed if "small" in kind else np.savez)(place, arr_0=images)
    elif kind.endswith(".npy"):
        np.save(place, images)
    elif kind == "flat":
        for i, image in enumerate(images):
            save_png(place / f"{i:04d}.png", image)
    elif kind == "classes":
        for i, image in enumerate(images):
            save_png(place / f"class{i // 4}" / f"{i:04d}.png", image)
    else:
        with zipfile.ZipFile(place, "w") as archive:
            for i, image in enumerate(images):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                archive.writestr(f"{i:04d}.png", file.getvalue())
    return place


KINDS = ["a.npz", "small.npz", "a.npy", "flat", "classes", "a.zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_set_gives_the_same_images(kind, tmp_path):
    images = pixels(10)
    found = open_images(stored(kind, images, tmp_path))
    assert (len(found), found.size, len(found.sha256)) == (10, (16, 16), 64)
    for batch, world in ((3, 1), (4, 3), (100, 2)):
        seen = []
        for rank in range(world):
            for part in found.batches(batch, rank=rank, world=world):
                assert part.images.dtype == torch.uint8 and part.prompts is None
                for index, image in zip(part.indices.tolist(), part.images):
                    seen.append(index)
                    np.testing.assert_array_equal(image.permute(1, 2, 0), images[index])
        assert seen == list(range(10))
    assert [part.indices.tolist() for part in found.batches(2, indices=[1, 4, 9])] == [[1, 4], [9]]


def test_shares_are_disjoint_and_whole():
    for count in (0, 1, 7, 100):
        parts = [share(count, rank, 3) for rank in range(3)]
        assert [i for part in parts for i in part] == list(range(count))


def test_labels_come_along(tmp_path):
    images = pixels(8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(8) % 3)
    assert open_images(tmp_path / "a.npz").labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert open_images(stored("classes", images, tmp_path)).labels.tolist() == [0] * 4 + [1] * 4
    assert open_images(stored("flat", images, tmp_path)).labels is None


def test_prompts_come_along(tmp_path):
    path = stored("a.npz", pixels(3), tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na tree\n")
    (part,) = open_images(path, prompts=tmp_path / "prompts.txt").batches(5)
    assert part.prompts == ["a cat", "a dog", "a tree"]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    with pytest.raises(UserError, match="1 prompts for 3 images"):
        open_images(path, prompts=tmp_path / "prompts.txt")


def test_a_large_npz_is_never_in_memory_as_a_whole(tmp_path):
    """60 MB of images, read with less than 8 MB."""
    side = 64

    def batches():
        for start in range(0, 5000, 500):
            yield torch.full((500, 3, side, side), start // 500, dtype=torch.uint8)

    write_npz(tmp_path / "a.npz", batches(), count=5000, size=(side, side))
    tracemalloc.start()
    total = 0
    found = open_images(tmp_path / "a.npz")
    for part in found.batches(50):
        total += int(part.images[:, 0, 0, 0].sum())
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert total == 500 * sum(range(10))
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (5000, side, side, 3)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="got 2 images, expected 3"):
        write_npz(path, [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], count=3, size=(8, 8))
    with pytest.raises(ValueError, match="float32"):
        write_npz(path, [torch.zeros(2, 3, 8, 8)], count=2, size=(8, 8))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# ---- what is refused ----------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([{"a": 1}], dtype=object), "Python objects"),
        (pixels(2).astype(np.float32) / 255, "dtype float32, expected uint8"),
        (pixels(2).transpose(0, 3, 1, 2).copy(), "transpose"),
        (pixels(2)[..., :1], "expected \\[N, H, W, 3\\]"),
        (pixels(2)[0], "expected \\[N, H, W, 3\\]"),
        (np.empty((0, 4, 4, 3), np.uint8), "expected \\[N, H, W, 3\\]"),
        (np.asfortranarray(pixels(2)), "by columns"),
    ],
    ids=["objects", "floats", "channels first", "gray", "one", "none", "columns"],
)
@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_other_arrays_are_refused(array, words, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    if ending == "npz":
        np.savez(path, arr_0=array)
    else:
        np.save(path, array)
    with pytest.raises(UserError, match=words):
        open_images(path)


def test_a_compressed_file_with_a_wrong_byte_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, arr_0=pixels(200) // 16)
    content = bytearray(path.read_bytes())
    content[20_000:20_060] = b"\xff" * 60  # no block of deflate begins so
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"arr_0 of .*x\.npz is damaged: .*invalid block type"):
        list(open_images(path).batches(50))


def test_only_ends_of_lines_separate_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\u2028b\x85c\r\n\nd\n", encoding="utf-8")
    assert read_prompts(path) == ["a\u2028b\x85c", "", "d"]
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"prompts\.txt is empty; it must hold one prompt a line"):
        read_prompts(path)


def test_damaged_files_are_refused(tmp_path):
    path = stored("a.npy", pixels(3), tmp_path)
    truncated(path)
    with pytest.raises(UserError, match="truncated"):
        open_images(path)
    path = stored("a.npz", pixels(3), tmp_path)
    truncated(path)
    with pytest.raises(UserError, match=r"a\.npz"):
        open_images(path)
    np.savez(tmp_path / "b.npz", images=pixels(3))
    with pytest.raises(UserError, match="no array 'arr_0'; it holds images"):
        open_images(tmp_path / "b.npz")
    with pytest.raises(UserError, match="there are no images at"):
        open_images(tmp_path / "none")
    np.savez(tmp_path / "c.npz", arr_0=pixels(3), arr_1=np.zeros(2, int))
    with pytest.raises(UserError, match="one integer label for each"):
        open_images(tmp_path / "c.npz")


def test_an_unreadable_picture_is_an_error_and_not_replaced(tmp_path):
    folder = stored("classes", pixels(8), tmp_path)
    (folder / "class0" / "0001.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"class0/0001\.png cannot be read"):
        list(open_images(folder).batches(4))
    again = open_images(folder)
    for _ in range(2):  # it is not forgotten either
        with pytest.raises(UserError, match=r"class0/0001\.png cannot be read"):
            list(again.batches(4))


def test_pictures_of_unequal_size_need_a_resolution(tmp_path):
    folder = stored("flat", pixels(3), tmp_path)
    save_png(folder / "0002.png", pixels(1, 20)[0])
    with pytest.raises(UserError, match="20 x 20 pixels, not 16 x 16"):
        list(open_images(folder).batches(4))
    (part,) = open_images(folder, resolution=8).batches(4)
    assert tuple(part.images.shape) == (3, 3, 8, 8)
    save_png(folder / "0000.png", pixels(1, 20)[0][:10])
    with pytest.raises(UserError, match="20 x 10 pixels and is not square"):
        open_images(folder)


def test_pictures_beside_folders_of_pictures_are_refused(tmp_path):
    folder = stored("flat", pixels(3), tmp_path)
    save_png(folder / "cat" / "a.png", pixels(1)[0])
    with pytest.raises(UserError, match="3 pictures beside folders of 1"):
        open_images(folder)


def test_arrays_are_not_resized(tmp_path):
    with pytest.raises(UserError, match="16 x 16 pixels, which are not resized"):
        open_images(stored("a.npz", pixels(3), tmp_path), resolution=8)


# ---- 8 bits -------------------------------------------------------------------------------------


def test_the_rules_of_8_bits():
    x = torch.tensor([-0.1, 0.0, 0.5 / 255, 1.5 / 255, 0.999, 1.0, 1.2], dtype=torch.float64)
    wanted = {
        "round": [0, 0, 0, 2, 255, 255, 255],
        "half-up": [0, 0, 1, 2, 255, 255, 255],
        "truncate": [0, 0, 0, 1, 254, 255, 255],
        "256": [0, 0, 0, 1, 255, 255, 255],
    }
    assert set(wanted) == set(UINT8_RULES)
    for rule, values in wanted.items():
        assert to_uint8(x, rule).tolist() == values, rule
    assert to_uint8(x).tolist() == wanted["round"]
    with pytest.raises(ConfigError, match="did you mean 'round'"):
        to_uint8(x, "rond")
    with pytest.raises(UserError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))


def test_every_8_bit_value_survives_but_by_256():
    exact = torch.arange(256, dtype=torch.float32) / 255
    for rule in ("round", "half-up"):
        assert to_uint8(exact, rule).tolist() == list(range(256))
    assert to_uint8(exact, "256").tolist() == list(range(256))


# ---- from images to figures ---------------------------------------------------------------------


class ThreadGroup:
    """Processes as threads: `gather` waits for all."""

    def __init__(self, world):
        self.world = world
        self.barrier = threading.Barrier(world)
        self.values = [None] * world

    def member(self, rank):
        group = self

        class Member:
            world = group.world

            def gather(self, value):
                group.values[rank] = value
                group.barrier.wait()
                found = list(group.values)
                group.barrier.wait()
                return found

        member = Member()
        member.rank = rank
        return member


def together(world, action):
    """Run `action(processes)` on every rank; the results or errors in the order of the ranks."""
    group, found = ThreadGroup(world), [None] * world

    def run(rank):
        try:
            found[rank] = action(group.member(rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


SOME = ["fd:tiny-vit", "kid:tiny-vit", "precision:tiny-vit", "mind:tiny-vit"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    np.savez(base / "samples.npz", arr_0=pixels(23, 64, seed=1))
    np.savez(base / "reference.npz", arr_0=pixels(17, 64, seed=2) // 2)
    return base


@pytest.fixture(scope="module")
def once(sets):
    """Figures and record of one process with one batch."""
    reference = Reference(sets / "reference.npz")
    images = open_images(sets / "samples.npz")
    return evaluate_images(images, reference, build_metrics(SOME), device="cpu", batch=64)


@pytest.fixture(scope="module")
def encoder():
    """The bundled encoder, loaded once."""
    needs = [need for metric in build_metrics(SOME).values() for need in metric.needs]
    return load_extractors(needs, torch.device("cpu"))


@pytest.fixture
def loaded(encoder, monkeypatch):
    """Loading is not made for threads, which stand for processes here."""
    monkeypatch.setattr("ahpa.evaluation.collect.load_extractors", lambda *given: encoder)


@pytest.mark.parametrize(("batch", "world"), [(5, 1), (8, 2), (3, 3)])
def test_figures_depend_on_no_batch_size_and_number_of_processes(sets, once, loaded, batch, world):
    reference = Reference(sets / "reference.npz")
    images, metrics = open_images(sets / "samples.npz"), build_metrics(SOME)

    def action(processes):
        options = dict(device="cpu", batch=batch, processes=processes)
        return evaluate_images(images, reference, metrics, **options)

    for figures, record in together(world, action):
        assert figures.keys() == once[0].keys()
        for name, value in figures.items():
            assert value == pytest.approx(once[0][name], rel=1e-4, abs=1e-7), name
        assert record == once[1]


def test_the_record_says_what_decides_the_figures(sets, once):
    figures, record = once
    assert record["images"] == 23
    assert record["reference"]["sha256"] == open_images(sets / "reference.npz").sha256
    assert record["reference"]["images"] == 17
    (features,) = record["metrics"]["kid:tiny-vit"]["features"]
    assert features["output"] == "pooled"
    assert len(features["extractor"]["weights_sha256"]) == 64
    assert record["metrics"]["kid:tiny-vit"]["subset_size"] == 1000
    assert "/" not in str(record).replace("n/a", ""), "no path is part of a protocol"
    assert figures["fd:tiny-vit"] > 0


def test_an_error_of_one_process_ends_all(sets, loaded, tmp_path):
    folder = stored("flat", pixels(6, 64), tmp_path)
    (folder / "0005.png").write_bytes(b"x")  # in the share of the last process
    reference, metrics = Reference(sets / "reference.npz"), build_metrics(["fd:tiny-vit"])
    images = open_images(folder)
    with pytest.raises(UserError):
        evaluate_images(images, reference, metrics, device="cpu")
    found = together(
        2,
        lambda processes: evaluate_images(
            images, reference, metrics, device="cpu", processes=processes
        ),
    )
    assert all(isinstance(error, UserError) and "0005.png" in str(error) for error in found)


def test_too_few_images_end_all_processes(sets, loaded):
    """The figures are computed by the first process; its error is everybody's."""
    reference, metrics = Reference(sets / "reference.npz"), build_metrics(["precision:tiny-vit"])
    images = [Batch(torch.arange(3), torch.zeros(3, 3, 64, 64, dtype=torch.uint8))]

    def action(processes):
        given = images if processes.rank == 0 else []
        return evaluate_images(given, reference, metrics, device="cpu", processes=processes)

    found = together(2, action)
    assert all("more than 3 images" in str(error) for error in found)


def test_a_process_that_fails_ends_all(sets, loaded):
    """Whatever fails in one process, the others do not wait for it."""
    reference, metrics = Reference(sets / "reference.npz"), build_metrics(["fd:tiny-vit"])

    def broken():
        yield Batch(torch.arange(3), torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
        raise MemoryError("no memory is left")

    def action(processes):
        given = broken() if processes.rank == 1 else []
        return evaluate_images(given, reference, metrics, device="cpu", processes=processes)

    found = together(2, action)
    assert all("process 1: MemoryError: no memory is left" in str(error) for error in found)


def test_samples_can_be_fed_directly(sets, once):
    """Batches of a generator instead of a stored set, in any order."""
    images = open_images(sets / "samples.npz")
    drawn = list(images.batches(4))[::-1]
    reference = Reference(sets / "reference.npz")
    figures, _ = evaluate_images(iter(drawn), reference, build_metrics(SOME), device="cpu")
    for name, value in figures.items():
        assert value == pytest.approx(once[0][name], rel=1e-4, abs=1e-7), name


def test_one_pass_serves_all_metrics(sets, monkeypatch):
    """Metrics that share an extractor see each image once."""
    from ahpa.evaluation.timm_features import TinyViTFeatures

    seen = []
    original = TinyViTFeatures.forward

    def forward(self, images, prompts=None):
        seen.append(len(images))
        return original(self, images, prompts)

    monkeypatch.setattr(TinyViTFeatures, "forward", forward)
    needs = [need for metric in build_metrics(SOME).values() for need in metric.needs]
    found = collect(open_images(sets / "samples.npz").batches(8), needs, device="cpu")
    assert seen == [8, 8, 7] and all(one.count == 23 for one in found.values())


def test_what_is_missing_is_told(sets):
    images, metrics = open_images(sets / "samples.npz"), build_metrics(["fd:tiny-vit"])
    with pytest.raises(UserError, match="fd:tiny-vit compare with a reference"):
        evaluate_images(images, None, metrics, device="cpu")
    with pytest.raises(UserError, match="reference: there is nothing at"):
        Reference(sets / "nothing.npz")


def test_a_feature_that_is_not_finite_is_an_error(sets, monkeypatch):
    from ahpa.evaluation.timm_features import TinyViTFeatures

    def bad(self, images, prompts=None):
        return {"pooled": torch.full((len(images), 192), torch.nan)}

    monkeypatch.setattr(TinyViTFeatures, "forward", bad)
    with pytest.raises(UserError, match="index 8 on"):
        needs = build_metrics(["fd:tiny-vit"])["fd:tiny-vit"].needs
        one = Batch(torch.arange(8, 12), torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
        collect([one], needs, device="cpu")


def test_real_photographs_are_told_from_gray_ones(shared):
    """Two sets of ImageNet's photographs; the distance beside NumPy's on the same features."""
    images = open_images(shared / "data" / "imagenet256-sample.zip")
    metrics = build_metrics(["fd:tiny-vit", "kid:tiny-vit"])
    needs = [need for metric in metrics.values() for need in metric.needs]
    parts = [list(images.batches(50, indices=range(start, 1000, 8))) for start in (0, 1)]
    gray = [
        part._replace(
            images=part.images.float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
        )
        for part in parts[1]
    ]
    real, other, changed = (collect(batches, needs, device="cpu") for batches in (*parts, gray))
    found = []
    for ours in (other, changed):
        figures = {}
        for metric in metrics.values():
            figures |= metric.compute(ours, real)
        found.append(figures)
    assert found[1]["kid:tiny-vit"] > 5 * abs(found[0]["kid:tiny-vit"])
    assert found[1]["fd:tiny-vit"] > 4 * found[0]["fd:tiny-vit"] > 0
    x, y = (one[metrics["kid:tiny-vit"].need].features().double().numpy() for one in (other, real))
    a, b = ((v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root
    assert found[0]["fd:tiny-vit"] == pytest.approx(wanted, rel=1e-6)


# ---- references ---------------------------------------------------------------------------------


@pytest.fixture
def small_inception(monkeypatch):
    """A network of Inception's name and outputs in which the features are a few pixels."""

    def forward(self, images, prompts=None):
        x = images.float().flatten(1)
        pool = x.repeat(1, 2048 // x.shape[1] + 1)[:, :2048] / 255
        return {"pool": pool, "spatial": pool[:, :2023], "logits": pool[:, :1008]}

    monkeypatch.setattr(inception.InceptionFeatures, "load", lambda self: None)
    monkeypatch.setattr(inception.InceptionFeatures, "forward", forward)
    monkeypatch.setattr(inception, "POOL", 2048)


def test_a_reference_of_our_own_is_adms(tmp_path, small_inception, monkeypatch):
    """The names, shapes and values of ADM's file; samples are compared with its moments as with the
    images themselves."""
    images = pixels(12, 8)
    folder = stored("flat", images, tmp_path)
    out = tmp_path / "ref.npz"
    make_reference.make_reference(open_images(folder), out, device="cpu", batch=5, kept=7)
    with np.load(out) as file:
        x = images.transpose(0, 3, 1, 2).reshape(12, -1).astype(np.float64) / 255
        x = np.tile(x, (1, 11))[:, :2048]
        np.testing.assert_allclose(file["mu"], x.mean(0), atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(x.T), atol=1e-6)
        assert file["mu_s"].shape == (2023,) and file["sigma_s"].shape == (2023, 2023)
        assert file["arr_0"].shape == (7, 8, 8, 3) and int(file["count"]) == 12
        rows = {image.tobytes() for image in images}
        assert len({image.tobytes() for image in file["arr_0"]} & rows) == 7
    moments = Reference(out).moments["pool"]
    assert moments.count == 12
    needs = build_metrics(["fid", "precision"])
    known = Reference(out).stored(need for m in needs.values() for need in m.reference_needs)
    assert [need.kind for need in known] == ["moments"]  # precision needs the images


def test_adms_file_without_a_count_or_images(tmp_path):
    rng = np.random.default_rng(0)
    mean, mean_s = rng.standard_normal(2048), rng.standard_normal(2023)
    sigma = np.asfortranarray(np.diag(np.arange(1.0, 2049)))
    arrays = dict(mu=mean, sigma=sigma, mu_s=mean_s, sigma_s=np.eye(2023))
    np.savez(tmp_path / "ref.npz", **arrays)
    reference = Reference(tmp_path / "ref.npz")
    assert not reference.moments["pool"].counted
    np.testing.assert_array_equal(reference.moments["pool"].covariance, sigma)
    np.testing.assert_array_equal(reference.moments["spatial"].mean, mean_s)
    with pytest.raises(UserError, match=r"no images \(arr_0\)"):
        assert reference.images
    np.savez(tmp_path / "bad.npz", **{**arrays, "sigma": np.eye(64)})
    with pytest.raises(UserError, match=r"sigma of .* \(64, 64\), expected floats \(2048, 2048\)"):
        Reference(tmp_path / "bad.npz")
    np.savez(tmp_path / "nan.npz", **{**arrays, "mu": mean * np.nan})
    with pytest.raises(UserError, match="mu of .* not finite"):
        Reference(tmp_path / "nan.npz")
    np.savez(tmp_path / "other.npz", features=mean)
    with pytest.raises(UserError, match="neither arr_0"):
        Reference(tmp_path / "other.npz")


def test_the_command(tmp_path):
    folder = stored("classes", pixels(9, 24), tmp_path)
    out = tmp_path / "ref.npz"
    done = tool("reference", folder, "--out", out, "--resolution", 16, "--num", 5, "--images-only")
    assert done.returncode == 0, done.stderr
    assert "9 images of 16 x 16 px, 5 kept" in done.stdout
    assert len(open_images(out)) == 5 and open_images(out).sha256 in done.stdout
    again = call("reference", folder, "--out", out)
    assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "ref.txt"], "must be an .npz file"),
        (["--out", "r.npz", "--num", "0"], "--num: must be a positive integer"),
        (["--out", "r.npz", "--images-only", "--weights", "x"], "no meaning with --images-only"),
        (["--out", "r.npz"], "there are no images at"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_of_the_command(arguments, words, tmp_path):
    done = call("reference", tmp_path / "none", *arguments)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_without_weights_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("AHPA_WEIGHTS", raising=False)
    out = tmp_path / "ref.npz"
    done = call("reference", stored("flat", pixels(3), tmp_path), "--out", out)
    assert done.returncode == 2 and not out.exists()
    for words in (inception.URL, str(tmp_path), "AHPA_WEIGHTS", "--images-only"):
        assert words in done.stderr
