"""What goes wrong with the images of a run: errors in worker processes, dead workers, unreadable
files and classes, disks that fail for a moment, and folders of another layout."""

import io
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import ROOT, TINY, call, environment, final_state, scalars, stable
from test_distributed import TORCHRUN, wait_until_gone, workers_of

from ahpa.data import images
from ahpa.data.images import PASSING
from ahpa.data.sampler import CursorLoader
from ahpa.data.transforms import to_rgb
from ahpa.engine.inference import load_generator
from ahpa.engine.run_log import LeftOut, start_logging
from ahpa.interop.publish import publish
from ahpa.registry import DATASETS, UserError, build
from ahpa.registry.errors import UnreadableSample

CONFIG = ROOT / "configs" / "sit-b.py"


def folder(root, **options):
    return build(
        DATASETS, dict(type="ImageFolder", root=str(root), **{"resolution": 16, **options})
    )


def picture(value=90):
    return Image.fromarray(np.full((20, 24, 3), value, np.uint8))


def make_set(base, classes=("cat", "dog"), count=4):
    for number, name in enumerate(classes):
        (base / name).mkdir(parents=True)
        for i in range(count):
            picture(20 * i + number).save(base / name / f"{i}.png")
    return base


def loader_of(data, *, batch=3, workers=2, **options):
    place = dict(seed=0, rank=0, world=1, start=0)
    return CursorLoader(dataset=data, batch=batch, num_workers=workers, **place, **options)


def arguments(data, work_dir, *more, workers=2, iters=6):
    own = ["--demo", "--data", data, "--work-dir", work_dir, "--max-iters", iters, *more]
    options = [*TINY, f"train_dataloader.num_workers={workers}", "checkpoints.interval=100"]
    return [CONFIG, *own, "--cfg-options", *options]


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


# ---- errors in workers ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_the_error_in_one_line(tmp_path, workers):
    make_set(tmp_path, count=12)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="of 24 pictures cannot be read") as caught:
        next(iter(loader_of(folder(tmp_path), workers=workers, tell=lambda problems: None)))
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message and "Caught" not in message


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_whose_data_fail_saves_and_ends_with_one_line(tmp_path, workers):
    """The pictures vanish while it runs: what was trained is saved, and can be continued."""
    data = make_set(tmp_path / "data", count=12)
    command = ["-m", "ahpa.cli.main", "train", *arguments(data, tmp_path / "run", iters=10_000)]
    command += [f"train_dataloader.num_workers={workers}", "train_dataloader.global_batch_size=2"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for_steps(tmp_path / "run", process)
    (tmp_path / "data").rename(tmp_path / "gone")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "pictures cannot be read" in errors and "Traceback" not in errors
    done = final_state(tmp_path / "run")["meta"]["iteration"]
    assert done == scalars(tmp_path / "run")[-1]["iteration"] > 0


def wait_for_steps(work_dir, process, count=3, seconds=120):
    end = time.time() + seconds
    while len(scalars(work_dir)) < count:
        assert time.time() < end and process.poll() is None, "the run did not begin"
        time.sleep(0.02)


def children_of(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def is_data_worker(pid, parent):
    """A forked worker has its parent's command line; multiprocessing's own helpers do not."""
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    return own == Path(f"/proc/{parent}/cmdline").read_bytes()


def test_a_killed_worker_ends_the_run_saved_and_it_resumes_exactly(tmp_path):
    data, run = make_set(tmp_path / "data", count=12), tmp_path / "run"
    command = [sys.executable, "-m", "ahpa.cli.main", "train"]
    options = dict(env=environment(), cwd=ROOT, text=True)
    process = subprocess.Popen(
        [*command, *map(str, arguments(data, run, iters=10_000))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,
    )
    wait_for_steps(run, process)
    workers = [pid for pid in children_of(process.pid) if is_data_worker(pid, process.pid)]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.startswith("error: "), errors
    assert errors.count("\n") == 1 and f"{workers[0]}" in errors and "num_workers" in errors
    done = final_state(run)["meta"]["iteration"]
    assert done > 0
    assert call("train", *arguments(data, run, "--resume", iters=done + 3)).returncode == 0
    assert call("train", *arguments(data, tmp_path / "whole", iters=done + 3)).returncode == 0
    assert stable(run) == stable(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_of_one_rank_ends_all_ranks_saved(tmp_path):
    """Two gloo processes; a data worker of the second is killed. Both save together and end."""
    data, run = make_set(tmp_path / "data", count=12), tmp_path / "run"
    more = ("--launcher", "pytorch")
    whole = [str(part) for part in arguments(data, run, *more, workers=1, iters=10_000)]
    process = subprocess.Popen(
        [*TORCHRUN, "tools/train.py", *whole],
        env=environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for_steps(run, process)
    ranks = workers_of(process)
    second = next(pid for pid in ranks if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    (worker,) = [pid for pid in children_of(second) if is_data_worker(pid, second)]
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    wait_until_gone(ranks)
    assert f"error: a process that reads data died (DataLoader worker (pid(s) {worker})" in errors
    assert final_state(run)["meta"]["iteration"] == scalars(run)[-1]["iteration"] > 0


@pytest.mark.slow
def test_odd_names_of_classes_are_kept(tmp_path):
    """A name that is no text of any encoding, and one with a line break."""
    data, run = make_set(tmp_path / "data", (os.fsdecode(b"\xff\xfe"), "a\nb")), tmp_path / "run"
    done = call("train", *arguments(data, run, workers=0, iters=2))
    assert done.returncode == 0 and "Error" not in done.stdout + done.stderr, done.stderr
    assert load_generator(run).classes == ("a\nb", os.fsdecode(b"\xff\xfe"))
    publish(run, tmp_path / "folder")
    assert load_generator(tmp_path / "folder").classes == load_generator(run).classes


# ---- what is put aside ----------------------------------------------------------------------


def test_what_is_put_aside_stands_once_in_the_log_and_in_a_file(tmp_path):
    """Two workers and eight epochs meet the same two files again and again; so does a resume."""
    data, run = make_set(tmp_path / "data"), tmp_path / "run"
    odd = os.fsdecode(b"\xff \n.png")
    (data / "cat" / "1.png").write_bytes(b"no")
    (data / "dog" / odd).write_bytes(b"")
    for more in ((), ("--resume",)):
        iters = 40 if more else 20
        done = call("train", *arguments(data, run, *more, iters=iters))
        assert done.returncode == 0, done.stderr
        told = [line for line in lines_of(run / "train.log") if line.startswith("left out: ")]
        assert len(told) == 2 and any("cat/1.png" in line for line in told), told
        records = [json.loads(line) for line in lines_of(run / "left_out.jsonl")]
        assert {record["file"] for record in records} == {"cat/1.png", f"dog/{odd}"}
        assert len(records) == 2 and all("Error" in record["reason"] for record in records)
        assert "Warning" not in done.stderr


def test_an_unwritable_list_of_what_is_put_aside_is_a_warning(tmp_path):
    (tmp_path / "left_out.jsonl").mkdir()  # a folder is in the way
    start_logging(tmp_path)
    LeftOut(tmp_path).tell({"cat/1.png": "broken"})
    (line,) = lines_of(tmp_path / "train.log")
    assert "cannot be written" in line and "cat/1.png" in line


def test_unreadable_files_are_counted_over_all_workers(tmp_path):
    """Eleven files are too many, though no worker meets more than six of them."""
    make_set(tmp_path, count=11)
    for path in (tmp_path / "cat").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="11 of 22 pictures cannot be read"):
        list(itertools.islice(loader_of(folder(tmp_path), tell=lambda problems: None), 30))


@pytest.mark.slow
def test_a_class_without_a_readable_picture_does_not_end_a_run(tmp_path):
    data, run = make_set(tmp_path / "data", ("cat", "dog", "eel")), tmp_path / "run"
    for path in (data / "dog").iterdir():
        path.write_bytes(b"no")
    images = folder(data)
    with pytest.warns(RuntimeWarning, match="dog/"):
        item = images[5]
    assert item["index"] == 8 and item["label"] == 2, "the following picture, with its own label"
    assert call("train", *arguments(data, run, iters=10, workers=0)).returncode == 0
    log = (run / "train.log").read_text()
    assert "no picture of the class 'dog' can be read" in log


# ---- files that are no pictures -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, kind):
    """Opening a FIFO would block for ever; a device may do anything."""
    make_set(tmp_path, ("cat",))
    path = tmp_path / "cat" / "0.png"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    with pytest.warns(RuntimeWarning, match=r"cat/0.png .*not a regular file"):
        assert folder(tmp_path)[0]["index"] == 1


def tiff(array):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "tiff")
    return data


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40),
        np.linspace(0, 255, 1200, dtype=np.float32).reshape(30, 40),
        np.linspace(0, 2**31 - 1, 1200).astype(np.int32).reshape(30, 40),
    ],
    ids=["float", "float-255", "int32"],
)
def test_tiffs_of_floats_or_32_bits_are_refused_and_not_clipped(tmp_path, array):
    make_set(tmp_path, ("cat",))
    (tmp_path / "cat" / "0.tif").write_bytes(tiff(array).getvalue())
    with pytest.warns(RuntimeWarning, match="0.tif cannot be read.*convert it to 8 or 16 bits"):
        assert folder(tmp_path)[1]["index"] == 2


def test_tiffs_of_16_bits_are_scaled_still():
    array = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    with Image.open(tiff(array)) as image:
        found = np.asarray(to_rgb(image))[:, :, 0]
    assert np.array_equal(found, np.round(array / 257.0).astype(np.uint8))


def test_errors_that_pass_are_tried_again(tmp_path):
    """The process has no file handle left for a moment (EMFILE), which is a real error."""
    make_set(tmp_path, ("cat",))
    data = folder(tmp_path)
    wanted = data[2]["image"]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest)

    def give_back():
        time.sleep(0.3)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    helper = threading.Thread(target=give_back)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            (tmp_path / "cat" / "0.png").read_bytes()
        assert caught.value.errno in PASSING
        helper.start()
        item = data[2]
    finally:
        helper.join()
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert item["index"] == 2 and torch.equal(item["image"], wanted) and not data.bad


# ---- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "packed"),
    [("data/", False), ("", True), pytest.param("data/", True, marks=pytest.mark.slow)],
)
def test_the_training_split_is_found_and_told(tmp_path, top, packed):
    base = tmp_path / "base"
    make_set(base / top / "train")
    make_set(base / top / "val", ("cat", "dog", "eel"))
    root = base
    if packed:
        root = tmp_path / "base.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for path in sorted(base.rglob("*.png")):
                archive.write(path, path.relative_to(base))
    data = folder(root)
    assert data.classes == ("cat", "dog") and len(data) == 8
    assert data.names[0] == "cat/0.png" and data[0]["label"] == 0
    assert len(data.notes) == 1 and "train/ and val/" in data.notes[0]
    assert folder(base / top / "train").notes == ()


def test_a_run_tells_which_split_it_uses(tmp_path):
    make_set(tmp_path / "data" / "train")
    make_set(tmp_path / "data" / "val")
    done = call("train", *arguments(tmp_path / "data", tmp_path / "run", iters=1))
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the pictures of train/ are used" in log and "2 classes (cat, dog)" in log


def test_splits_without_one_to_train_on_are_refused(tmp_path):
    make_set(tmp_path / "val")
    make_set(tmp_path / "test")
    with pytest.raises(UserError, match="splits and not classes.*DIR/cat/001.jpg"):
        folder(tmp_path)


def test_classes_that_are_called_like_splits_stay_classes(tmp_path):
    make_set(tmp_path, ("test", "train"))
    found = folder(tmp_path)
    assert found.classes == ("test", "train")
    (note,) = found.notes
    assert "test/ and train/ without folders in them: they are taken for classes" in note


def a_tar(base):
    with tarfile.open(base / "set.tar", "w") as archive:
        archive.add(make_set(base / "plain"), "plain")
    return base / "set.tar"


def a_csv(base):
    (base / "labels.csv").write_text("file,label\na.png,0\n")
    return base / "labels.csv"


def a_flat_folder(base):
    picture().save(base / "a.png")
    a_csv(base)
    return base


def shards(base):
    for i in range(3):
        (base / f"{i:05d}.tar").write_bytes(b"")
    return base


def one_picture(base):
    picture().save(base / "a.png")
    return base / "a.png"


@pytest.mark.parametrize(
    "make, message",
    [
        (a_tar, "is a .tar file, which is not read: unpack it"),
        (a_csv, "is a .csv file.*names of folders"),
        (a_flat_folder, "holds 1 pictures but no class folders, 1 .csv file;"),
        (shards, "holds no pictures, 3 .tar files;"),
        (one_picture, "a single picture is no data set"),
        (lambda base: base / "nowhere", "there are no images at"),
    ],
)
def test_another_layout_is_refused_with_the_expected_one(tmp_path, make, message):
    with pytest.raises(UserError, match=f"{message}.*DIR/cat/001.jpg") as caught:
        folder(make(tmp_path))
    assert "\n" not in str(caught.value)


# ---- searching for pictures ----------------------------------------------------------------------


@pytest.mark.parametrize("root", ["/", "/../", "link"])
def test_the_root_of_the_file_system_is_refused_unsearched(tmp_path, monkeypatch, root):
    (tmp_path / "link").symlink_to("/")
    monkeypatch.setattr(os, "scandir", None)
    with pytest.raises(UserError, match="is the root of the file system, not a data set"):
        folder(tmp_path / "link" if root == "link" else root)


def test_a_search_that_takes_long_says_what_it_has_seen(tmp_path, monkeypatch, caplog):
    make_set(tmp_path)
    monkeypatch.setattr(images, "FIRST_REPORT", 0.0)
    with caplog.at_level("INFO", logger="ahpa"):
        folder(tmp_path)
    (said,) = caplog.messages
    seen = "0 pictures among 0 files in 1 folders so far"
    assert said == f"looking for pictures in {tmp_path}: {seen}"


def test_a_quick_search_is_silent(tmp_path, caplog):
    make_set(tmp_path)
    with caplog.at_level("INFO", logger="ahpa"):
        assert len(folder(tmp_path)) == 8
    assert not caplog.messages


@pytest.mark.parametrize("pictures", [0, 8])
def test_a_tree_without_pictures_is_given_up_and_one_with_some_is_not(
    tmp_path, monkeypatch, pictures
):
    """Scaled down: 1,000 entries instead of a million, one picture in 200 of them."""
    monkeypatch.setattr(images, "HOPELESS", 1000)
    monkeypatch.setattr(images, "HOPELESS_RATIO", 200)
    if pictures:
        make_set(tmp_path)
    for number in range(12):
        (tmp_path / f"d{number}").mkdir()
        for file in range(100):
            (tmp_path / f"d{number}" / f"{file}.txt").touch()
    if pictures:
        assert len(folder(tmp_path)) == pictures
    else:
        with pytest.raises(UserError, match="is not a folder of pictures: 0 pictures among"):
            folder(tmp_path)


def test_a_link_to_itself_is_left_out_and_does_not_refuse_the_rest(tmp_path):
    make_set(tmp_path)
    (tmp_path / "cat" / "self.png").symlink_to("self.png")
    data = folder(tmp_path)
    assert len(data) == 9
    index = data.names.index("cat/self.png")
    with pytest.warns(UnreadableSample, match="cat/self.png"):
        assert data[index]["label"] == 0
