"""Files that someone made to harm: each is refused in one line, runs nothing, and takes no more
memory or time than a file of its size should. All in one process."""

import copy
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ahpa.engine import checkpoint
from ahpa.engine.assembly import build_generator_parts
from ahpa.engine.inference import load_generator
from ahpa.engine.weights import write_sums
from ahpa.interop.pipeline_folder import read_pipeline, write_pipeline
from ahpa.interop.published import import_weights, positions_of
from ahpa.registry import DATASETS, TOKENIZERS, UserError, build
from ahpa.registry.weight_files import read_contents, read_shapes, read_state_dict
from ahpa.tokenizers import sources

SECONDS = 20  # for one file, on a busy machine
MEMORY = 600 << 20  # bytes that all of this may add to the process
RAN = Path(f"ran-{os.getpid()}")  # what a crafted file tries to make

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory(request):
    """Fails if the process grew by more than `MEMORY` over all files."""
    load_generator(make_checkpoint(request.getfixturevalue("tmp_path_factory").mktemp("warm")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY, f"the process grew by {grown >> 20} MiB"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def refused(action, *arguments, **options):
    """Call it -> the message of the UserError that it must raise."""
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        action(*arguments, **options)
    assert time.perf_counter() - began < SECONDS
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2500
    assert not RAN.exists(), "the file's code was run"
    return str(caught.value)


def test_what_is_crafted_from_is_read_as_it_is(tmp_path, pipeline):
    """Without the change that harms, each kind of file below is accepted."""
    wanted = torch.arange(4.0)
    unchanged = sizes(b"K\x04\x85")
    for number, data in enumerate((PLAIN, OLD, repacked(PLAIN), old_with_elements(4), unchanged)):
        (tmp_path / f"{number}.pt").write_bytes(data)
        assert torch.equal(read_state_dict(tmp_path / f"{number}.pt", "the test")["a"], wanted)
    (tmp_path / "x.safetensors").write_bytes(st({"a": entry()}))
    assert torch.equal(read_state_dict(tmp_path / "x.safetensors", "the test")["a"], wanted * 0)
    autoencoder(vae_folder(tmp_path, json.dumps(VAE).encode()))
    load_generator(published(tmp_path / "folder", described()))
    load_generator(make_checkpoint(tmp_path))
    backbone = build_generator_parts(MODEL).backbone
    torch.save(official(pos_embed=positions_of(backbone)), tmp_path / "x.pt")
    import_weights(tmp_path / "x.pt", tmp_path / "a.pth", layout="sit", num_heads=2)
    read_pipeline(copied(pipeline, tmp_path / "pipeline"), tmp_path / "b.pth")
    (tmp_path / "x.zip").write_bytes(ONE)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(png())
    (tmp_path / "captions.json").write_bytes(captions([IMAGE], [CAPTION]))
    places = dict(images=str(tmp_path / "images"), annotations=str(tmp_path / "captions.json"))
    for own in (
        dict(type="ImageFolder", root=str(tmp_path / "x.zip")),
        dict(type="CocoCaptions", **places),
    ):
        assert build(DATASETS, dict(resolution=16, **own))[0]["image"].shape == (3, 16, 16)


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


# ---- safetensors ----------------------------------------------------------------------------


def st(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": struct.pack("<Q", 0),
    "header of 2^63": st({"a": entry()}, length=2**63),
    "header of 2^64 - 1": st({"a": entry()}, length=2**64 - 1),
    "header of 1 GB": st({"a": entry()}, length=10**9),
    "header longer than the file": st({"a": entry()}, length=500),
    "no JSON": st(b"{'a': 1}"),
    "a list": st([1, 2]),
    "deep": st(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "not UTF-8": st(b'{"\xff\xfe": 1}'),
    "unknown dtype": st({"a": entry("F99")}),
    "dtype is a number": st({"a": entry(5)}),
    "negative offset": st({"a": entry(offsets=(-16, 0))}),
    "offset beyond": st({"a": entry(offsets=(16, 32))}),
    "offset of 2^64": st({"a": entry(offsets=(0, 2**64))}),
    "offsets reversed": st({"a": entry(offsets=(16, 0))}),
    "overlap": st({"a": entry(), "b": entry()}),
    "gap": st({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(shape=(1,), offsets=(12, 16))}),
    "shape too large": st({"a": entry(shape=(10**9, 10**3))}),
    "shape overflows": st({"a": entry(shape=(2**62, 2**62))}),
    "shape negative": st({"a": entry(shape=(-4,))}),
    "shape of floats": st({"a": entry(shape=(4.0,))}),
    "shape nested": st({"a": entry(shape=([4],))}),
    "no dtype": st({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "cut": st({"a": entry()}, data=bytes(9)),
    "too long": st({"a": entry()}, data=bytes(40)),
    "metadata of numbers": st({"__metadata__": {"a": 1}, "a": entry()}),
    "a pickle": pickle.dumps({"a": 1}),
    "a page": b"<!DOCTYPE html><html>404</html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SAFETENSORS[name])
    for read in (read_state_dict, read_shapes, read_contents):
        assert str(path) in refused(read, path, "the test")


# ---- pickles --------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def repacked(data, change=None, *, compression=zipfile.ZIP_STORED, more=()):
    """A torch archive with records changed by change(name, bytes) -> bytes, or None to drop it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            record = old.read(member)
            record = change(member.filename, record) if change else record
            if record is not None:
                new.writestr(member.filename, record)
        for name, record in more:
            new.writestr(name, record)
    return out.getvalue()


PLAIN = saved({"a": torch.arange(4.0)})
OLD = saved({"a": torch.arange(4.0)}, _use_new_zipfile_serialization=False)


def with_pickle(pickled):
    return repacked(PLAIN, lambda name, data: pickled if name.endswith("data.pkl") else data)


def with_bytes(old, new):
    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        assert data.count(old) == 1
        return data.replace(old, new)

    return repacked(PLAIN, change)


def old_with_elements(count):
    """torch's older format, of a storage that claims `count` elements."""
    place = OLD.index(b"K\x04Nt")
    return OLD[:place] + b"J" + struct.pack("<i", count) + OLD[place + 2 :]


def sizes(size, stride=b"K\x01\x85", offset=b"K\x00"):
    """The archive of one tensor of another size, stride and offset."""

    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        start = data.index(b"Q", data.index(b"cpu")) + 1
        end = data.index(b"\x89", start)
        return data[:start] + offset + size + stride + data[end:]

    return repacked(PLAIN, change)


def tar_of(data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def npz(array, **options):
    out = io.BytesIO()
    np.savez(out, a=array, **options)
    return out.getvalue()


def scripted():
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


def itself():
    found = []
    found.append(found)
    return found


def doubled(levels):
    found = [1]
    for _ in range(levels):
        found = [found, found]
    return found


COMMAND = f"touch {RAN}"
LARGE = 2**31 - 1
PICKLES = {
    "empty": lambda: b"",
    "cut to a quarter": lambda: PLAIN[: len(PLAIN) // 4],
    "cut to a half": lambda: PLAIN[: len(PLAIN) // 2],
    "cut by a byte": lambda: PLAIN[:-1],
    "its directory is gone": lambda: PLAIN[: PLAIN.rindex(b"PK\x01\x02")],
    "no data.pkl": lambda: repacked(PLAIN, lambda n, d: None if n.endswith("data.pkl") else d),
    "no record": lambda: repacked(PLAIN, lambda n, d: None if n.endswith("data/0") else d),
    "os.system": lambda: pickle.dumps({"a": Evil(os.system, COMMAND)}),
    "os.system, protocol 0": lambda: pickle.dumps({"a": Evil(os.system, COMMAND)}, protocol=0),
    "os.system, protocol 2": lambda: pickle.dumps({"a": Evil(os.system, COMMAND)}, protocol=2),
    "os.system in an archive": lambda: with_pickle(pickle.dumps(Evil(os.system, COMMAND), 2)),
    "eval in an archive": lambda: with_pickle(
        pickle.dumps(Evil(eval, f"open({str(RAN)!r}, 'w')"), 2)
    ),
    "exec": lambda: pickle.dumps(Evil(exec, f"open({str(RAN)!r}, 'w')"), 2),
    "posix.system by hand": lambda: with_pickle(f"cposix\nsystem\n(V{COMMAND}\ntR.".encode()),
    "os.system in torch's older format": lambda: saved(
        {"a": Evil(os.system, COMMAND)}, _use_new_zipfile_serialization=False
    ),
    "a bomb": lambda: repacked(
        PLAIN, compression=zipfile.ZIP_DEFLATED, more=[("x/data/9", bytes(100 << 20))]
    ),
    "compressed records": lambda: repacked(PLAIN, compression=zipfile.ZIP_DEFLATED),
    "more elements than stored": lambda: with_bytes(b"K\x04t", b"J\xff\xff\xff\x00t"),
    "far more elements": lambda: with_bytes(b"K\x04t", b"J\xff\xff\xff\x7ft"),
    "a negative number of elements": lambda: with_bytes(b"K\x04t", b"J\xff\xff\xff\xfft"),
    "a size beyond the storage": lambda: sizes(b"J\xff\xff\xff\x7f\x85"),
    "a negative size": lambda: sizes(b"J\xff\xff\xff\xff\x85"),
    "a negative stride": lambda: sizes(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
    "a negative offset": lambda: sizes(b"K\x04\x85", offset=b"J\xfc\xff\xff\xff"),
    "an offset beyond": lambda: sizes(b"K\x04\x85", offset=b"J\xff\xff\xff\x7f"),
    "a terabyte of stride 0": lambda: saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
    "a thousand views of one storage": lambda: saved(
        {str(i): whole.view(-1) for whole in [torch.zeros(10**5)] for i in range(1000)}
    ),
    "sparse": lambda: saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (2**40,))}),
    "without storage": lambda: saved({"a": torch.empty(10**9, 10**6, device="meta")}),
    "a list": lambda: saved([torch.zeros(1)]),
    "a number": lambda: saved(5),
    "nothing": lambda: saved(None),
    "a tensor": lambda: saved(torch.zeros(3)),
    "names that are numbers": lambda: saved({1: torch.zeros(3)}),
    "values that are no tensors": lambda: saved({"a": "x"}),
    "a list that holds itself": lambda: saved({"a": itself()}),
    "2^60 lists": lambda: saved({"a": doubled(60)}),
    "older format, huge storage": lambda: old_with_elements(LARGE),
    "older format, negative storage": lambda: old_with_elements(-5),
    "older format, cut": lambda: OLD[:-9],
    "older format, cut early": lambda: OLD[:40],
    "a tar": lambda: tar_of(b"x"),
    "TorchScript": scripted,
    "a text of 2^62 bytes": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "a memo of 2^31": lambda: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "an npz": lambda: npz(np.zeros(4)),
    "an npz of objects": lambda: npz(np.array([Evil(os.system, COMMAND)], dtype=object)),
    "a page": lambda: b"<!DOCTYPE html><html>404</html>",
    "zeros": lambda: bytes(1000),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_pickles(tmp_path, name, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(PICKLES[name]())
    assert str(path) in refused(read_state_dict, path, "the test")
    for read in (read_shapes, read_contents):
        try:  # what only `read_state_dict` can refuse may be read, but runs nothing
            read(path, "the test")
        except UserError as error:
            assert "\n" not in str(error)
        assert not RAN.exists()


# ---- autoencoders ---------------------------------------------------------------------------

JSON_FILES = {
    "empty": b"",
    "cut": b'{"a": ',
    "a list": b"[1]",
    "a number": b"5",
    "null": b"null",
    "100,000 deep": nested(100_000).encode(),
    "100 deep": b'{"a": ' + nested(100).encode() + b"}",
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "not a number": b'{"scaling_factor": NaN}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "20 MB": b'{"a": "' + b"x" * (20 << 20) + b'"}',
}
VAE = json.loads((sources.BUNDLED / "config.json").read_text())
VAE_OPTIONS = [
    ("in_channels", 1),
    ("in_channels", "3"),
    ("_class_name", 5),
    ("_class_name", "os.system"),
    ("block_out_channels", []),
    ("block_out_channels", "x"),
    ("block_out_channels", 5),
    ("block_out_channels", [0]),
    ("block_out_channels", [-32]),
    ("block_out_channels", [32.5]),
    ("block_out_channels", [[32]]),
    ("block_out_channels", [2**60] * 4),
    ("block_out_channels", [32] * 1000),
    ("layers_per_block", 10**9),
    ("layers_per_block", 0),
    ("layers_per_block", "2"),
    ("layers_per_block", True),
    ("norm_num_groups", 0),
    ("norm_num_groups", 7),
    ("norm_num_groups", 10**12),
    ("latent_channels", 0),
    ("latent_channels", "4"),
    ("latent_channels", 10**9),
    ("latent_channels", 5),
    ("act_fn", "exec"),
    ("act_fn", 5),
    ("scaling_factor", 0),
    ("scaling_factor", "x"),
    ("scaling_factor", [1]),
    ("shift_factor", "x"),
    ("use_quant_conv", "yes"),
    ("mid_block_add_attention", 1),
    ("down_block_types", ["Evil"]),
    ("up_block_types", [5]),
]


def autoencoder(source):
    """Build it as a run does, and read its weights."""
    build(TOKENIZERS, {"type": "KLAutoencoder", "source": str(source)}).load()


def vae_folder(tmp_path, config):
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    for path in sources.BUNDLED.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", JSON_FILES)
def test_config_files_of_autoencoders(tmp_path, name):
    refused(autoencoder, vae_folder(tmp_path, JSON_FILES[name]))


@pytest.mark.parametrize(("key", "value"), VAE_OPTIONS, ids=str)
def test_options_of_autoencoders(tmp_path, key, value):
    message = refused(autoencoder, vae_folder(tmp_path, json.dumps({**VAE, key: value}).encode()))
    said_otherwise = ("_class_name", "down_block_types", "up_block_types", "latent_channels")
    assert key in message or key in said_otherwise


@pytest.mark.parametrize(
    "source",
    ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "/dev/zero", "/", "\ud800/x"],
    ids=ascii,
)
def test_names_of_files(source):
    for action in (autoencoder, load_generator):
        refused(action, source)
    refused(read_state_dict, source, "the test")
    if source != "/":  # a folder, which would be searched for pictures
        refused(lambda: build(DATASETS, {"type": "ImageFolder", "root": source, "resolution": 16}))


LDM = "decoder.up.{}.block.0.conv1.weight"
SINGLE_FILES = {
    "no shape": {"encoder.down.0.block.0.conv1.weight": (), "decoder.conv_in.weight": (4, 4)},
    "no channels": {"encoder.down.0.block.0.conv1.weight": (0, 3), "decoder.conv_in.weight": (4,)},
    "zero width": {
        "encoder.down.0.block.0.conv1.weight": (0, 3),
        "decoder.conv_in.weight": (4, 4),
    },
    "an odd block": {
        "encoder.down.0.block.0.conv1.weight": (32, 3),
        "decoder.conv_in.weight": (32, 4),
        "decoder.up": (1,),
        LDM.format("x"): (1,),
        LDM.format("9" * 5000): (1,),
    },
    "nothing of it": {"x": (1,)},
}


@pytest.mark.parametrize("name", SINGLE_FILES)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_single_files_of_autoencoders(tmp_path, name, ending):
    state = {key: torch.zeros(shape) for key, shape in SINGLE_FILES[name].items()}
    path = tmp_path / f"x{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    refused(autoencoder, path)


# ---- checkpoints and published folders ------------------------------------------------------

MODEL = {
    "resolution": 64,
    "tokenizer": {"type": "KLAutoencoder", "source": "bundled"},
    "backbone": {
        "type": "SiT",
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 2,
        "num_classes": 5,
    },
}


def small_state():
    torch.manual_seed(0)
    return build_generator_parts(MODEL).backbone.state_dict()


def make_checkpoint(folder, model=MODEL, state=None):
    state = small_state() if state is None else state
    checkpoint.save_imported(model, state, folder / "x.pth", layout="test")
    return folder / "x.pth"


def published(folder, config, state=None):
    folder.mkdir(exist_ok=True)
    save_file(small_state() if state is None else state, folder / "model.safetensors")
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    write_sums(folder, ["config.json", "model.safetensors"])
    return folder


def described(model=MODEL, **changes):
    own = {"format": "ahpa-1", "weights": "ema", "model": model, "sums": "SHA256SUMS"}
    return {**own, **changes}


def changed(place, value):
    """The model section with one value changed."""
    model = copy.deepcopy(MODEL)
    *folders, key = place.split(".")
    inner = model
    for name in folders:
        inner = inner[name]
    inner[key] = value
    return model


MODELS = [
    ("resolution", "64"),
    ("resolution", 0),
    ("resolution", -64),
    ("resolution", 63),
    ("resolution", 10**9),
    ("resolution", 2**70),
    ("resolution", 64.0),
    ("backbone", []),
    ("backbone", "SiT"),
    ("backbone", {}),
    ("backbone", None),
    ("backbone.type", 5),
    ("backbone.type", ["SiT"]),
    ("backbone.type", "Nothing"),
    ("backbone.type", "a\0b"),
    ("backbone.type", "os.system"),
    ("backbone.depth", 10**9),
    ("backbone.depth", 0),
    ("backbone.depth", -1),
    ("backbone.depth", "2"),
    ("backbone.depth", 2.5),
    ("backbone.depth", 3),
    ("backbone.hidden_size", 1 << 19),
    ("backbone.hidden_size", 10**12),
    ("backbone.hidden_size", 0),
    ("backbone.hidden_size", "32"),
    ("backbone.num_heads", 0),
    ("backbone.num_heads", -2),
    ("backbone.num_heads", 3),
    ("backbone.patch_size", 0),
    ("backbone.patch_size", 10**9),
    ("backbone.patch_size", "2"),
    ("backbone.mlp_ratio", -1.0),
    ("backbone.mlp_ratio", 1e7),
    ("backbone.mlp_ratio", "4"),
    ("backbone.num_classes", 10**9),
    ("backbone.num_classes", "ten"),
    ("backbone.num_classes", -5),
    ("backbone.nothing", 5),
    ("tokenizer", []),
    ("tokenizer", "bundled"),
    ("tokenizer.type", 5),
    ("tokenizer.source", 5),
    ("tokenizer.source", ""),
    ("tokenizer.source", "a\0b"),
    ("tokenizer.source", "~nobody-of-this-name/x"),
    ("tokenizer.source", "x" * 5000),
    ("tokenizer.source", "/dev/zero"),
    ("tokenizer.scale", "x"),
    ("tokenizer.mean", [0.0] * 1000),
    ("tokenizer.trust_remote_code", True),
    ("flow", "Flow"),
    ("flow", {"type": "Nothing"}),
    ("flow", {"type": "DiscreteFlow", "path": {"type": "DiscretePath", "steps": 10**12}}),
    ("conditioner", 5),
    ("conditioner", {"type": "ClassLabels", "dropout": "x"}),
    ("conditioner", {"type": "TextConditioner"}),
]


@pytest.mark.parametrize(("place", "value"), MODELS, ids=ascii)
def test_configs_of_published_folders_and_checkpoints(tmp_path, place, value):
    model = changed(place, value)
    refused(load_generator, published(tmp_path / "folder", described(model)))
    refused(load_generator, make_checkpoint(tmp_path, model))


@pytest.mark.parametrize("name", JSON_FILES)
def test_config_files_of_published_folders(tmp_path, name):
    refused(load_generator, published(tmp_path / "folder", JSON_FILES[name]))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": ["ahpa-1"]},
        {"format": None},
        {"weights": 5},
        {"weights": ["ema"]},
        {"model": "x"},
        {"model": [MODEL]},
        {"sums": "../../etc/passwd", "weights": "model"},
        {"training": {"hooks": [{"custom_imports": "x"}]}},
    ],
    ids=ascii,
)
def test_entries_of_published_configs(tmp_path, changes):
    refused(load_generator, published(tmp_path / "folder", described(**changes)))


def without_one(state):
    return dict(list(state.items())[1:])


STATES = {
    "one is missing": without_one,
    "one is unknown": lambda state: {**state, "x\0y": torch.zeros(1)},
    "integers": lambda state: {key: value.long() for key, value in state.items()},
    "another shape": lambda state: {key: value[None] for key, value in state.items()},
    "no weights": lambda state: {},
}


@pytest.mark.parametrize("name", STATES)
def test_weights_of_published_folders_and_checkpoints(tmp_path, name):
    state = STATES[name](small_state())
    refused(load_generator, published(tmp_path / "folder", described(), state))
    refused(load_generator, make_checkpoint(tmp_path, state=state))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def replaced(path, make):
    path.unlink()
    make(path)


def rewrite_depth(path):
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 4'))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", flip),
        ("config.json", rewrite_depth),
        ("SHA256SUMS", Path.unlink),
        ("SHA256SUMS", lambda path: path.write_bytes(b"\xff\0" * 100)),
        ("SHA256SUMS", lambda path: path.write_text("")),
        ("SHA256SUMS", lambda path: path.write_text("abc  model.safetensors\n")),
        ("SHA256SUMS", lambda path: replaced(path, os.mkfifo)),
        ("SHA256SUMS", lambda path: replaced(path, lambda p: p.symlink_to("/dev/zero"))),
        ("SHA256SUMS", lambda path: replaced(path, Path.mkdir)),
        ("SHA256SUMS", lambda path: os.truncate(path, 400 << 20)),
    ],
)
def test_a_published_file_that_changed_on_the_way_is_noticed(tmp_path, name, change):
    folder = published(tmp_path / "folder", described())
    load_generator(folder)
    change(folder / name)
    assert "SHA256SUMS" in refused(load_generator, folder)


def test_a_folder_of_an_earlier_version_has_no_sums(tmp_path):
    config = described()
    del config["sums"]
    folder = published(tmp_path / "folder", config)
    (folder / "SHA256SUMS").unlink()
    assert load_generator(folder).backbone.depth == 2


def meta(config):
    return {"iteration": 1, "seed": 0, "config": config}


CHECKPOINTS = {
    "no meta": lambda: {},
    "meta is a text": lambda: {"meta": "x"},
    "no config": lambda: {"meta": {}},
    "config is a list": lambda: {"meta": meta([1])},
    "model is a list": lambda: {"meta": meta({"model": [1]})},
    "no average": lambda: {"meta": meta({"model": MODEL})},
    "the average is a list": lambda: {"meta": meta({"model": MODEL}), "ema": [1]},
    "the average holds texts": lambda: {"meta": meta({"model": MODEL}), "ema": {"a": "x"}},
    "names are numbers": lambda: {"meta": meta({"model": MODEL}), "ema": {1: torch.zeros(1)}},
    "code": lambda: {"meta": Evil(os.system, COMMAND)},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_with_a_right_checksum(tmp_path, name):
    checkpoint.save(CHECKPOINTS[name](), tmp_path / "x.pth")
    refused(load_generator, tmp_path / "x.pth")


# ---- published checkpoints and diffusers folders --------------------------------------------


def official(**changes):
    """A checkpoint of SiT's layout with entries changed; None removes one."""
    state = {"pos_embed": torch.zeros(1, 16, 32), **small_state(), **changes}
    return {key: value for key, value in state.items() if value is not None}


def fixed(**changes):
    """The same with the right positions: it is accepted without changes."""
    return official(pos_embed=positions_of(build_generator_parts(MODEL).backbone), **changes)


def normed(weight):
    name = "blocks.0.attn.q_norm."
    return official(**{f"{name}weight": weight, f"{name}bias": torch.zeros(1)})


ONES = torch.ones(1)
PROJ = "x_embedder.proj.weight"
OFFICIAL = {
    "nothing": lambda: {},
    "no positions": lambda: official(pos_embed=None),
    "flat positions": lambda: official(pos_embed=torch.zeros(5)),
    "other positions": official,
    "a number as patches": lambda: official(**{PROJ: torch.zeros(())}),
    "no channels": lambda: official(**{PROJ: torch.zeros(32, 0, 2, 2)}),
    "no width": lambda: official(**{PROJ: torch.zeros(0, 4, 2, 2)}),
    "a huge width": lambda: official(**{PROJ: torch.zeros(1 << 20, 4, 1, 1)}),
    "integers": lambda: official(**{PROJ: torch.zeros(32, 4, 2, 2, dtype=torch.int32)}),
    "names that are numbers": lambda: {5: torch.zeros(1)},
    "a block of 5,000 digits": lambda: official(**{f"blocks.{'9' * 5000}.x": torch.zeros(1)}),
    "an odd name": lambda: official(**{"a\0b\n": torch.zeros(1)}),
    "an empty table": lambda: official(**{"y_embedder.embedding_table.weight": torch.zeros(0, 32)}),
    "positions of a grid without values": lambda: official(pos_embed=torch.zeros(1, 10**9, 0)),
    "positions of a large grid": lambda: official(pos_embed=torch.zeros(1, 1 << 20, 1)),
    "a norm of no queries": lambda: normed(torch.zeros(0)),
    "a norm that is a number": lambda: normed(torch.zeros(())),
    "thousands of blocks": lambda: official(
        **{f"blocks.{i}.x": torch.zeros(1) for i in range(2, 4000)}
    ),
    "a weight under two names": lambda: fixed(**{f"module.{PROJ}": torch.zeros(32, 4, 2, 2)}),
    "a weight in two lists": lambda: fixed(**{"blocks.9.x": ONES, "decoder_blocks.6.x": ONES}),
    "negative steps": lambda: {"ema": fixed(), "steps": -5},
    "steps of 400 digits": lambda: {"ema": fixed(), "steps": 10**400},
    "steps are True": lambda: {"ema": fixed(), "steps": True},
    "no tensors": lambda: {"ema": {"a": 1}},
    "code": lambda: {"ema": Evil(os.system, COMMAND)},
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_checkpoints(tmp_path, name):
    torch.save(OFFICIAL[name](), tmp_path / "x.pt")
    options = dict(layout="sit", num_heads=2)
    refused(import_weights, tmp_path / "x.pt", tmp_path / "out.pth", **options)
    assert not (tmp_path / "out.pth").exists()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    base = tmp_path_factory.mktemp("pipeline")
    write_pipeline(make_checkpoint(base), base / "folder")
    return base / "folder"


PIPELINES = [
    ("model_index.json", "scheduler", 5),
    ("model_index.json", "scheduler", ["diffusers"]),
    ("model_index.json", "num_classes", "x"),
    ("model_index.json", "num_classes", 10**9),
    ("model_index.json", "time_scale", -1),
    ("model_index.json", "reversed_time", "yes"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", -1),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "x"),
    ("transformer/config.json", "num_layers", 10**9),
    ("transformer/config.json", "num_layers", "2"),
    ("transformer/config.json", "attention_head_dim", 1 << 19),
    ("transformer/config.json", "num_attention_heads", 0),
    ("transformer/config.json", "num_embeds_ada_norm", 10**12),
    ("transformer/config.json", "sample_size", "x"),
    ("transformer/config.json", "patch_size", 0),
    ("transformer/config.json", "norm_type", "exec"),
    ("vae/config.json", "layers_per_block", 10**9),
    ("transformer/config.json", "sample_size", 4096),
    ("transformer/config.json", "sample_size", 9),
    ("transformer/config.json", "out_channels", 5),
    ("transformer/config.json", "attention_head_dim", 1 << 40),
    ("transformer/config.json", "activation_fn", "gelu"),
    ("transformer/config.json", "activation_fn", "linear-silu"),
    ("transformer/config.json", "attention_bias", False),
    ("transformer/config.json", "attention_bias", 1),
    ("transformer/config.json", "norm_elementwise_affine", True),
    ("transformer/config.json", "norm_eps", 0.01),
    ("transformer/config.json", "norm_eps", "x"),
]


def copied(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(("name", "key", "value"), PIPELINES, ids=ascii)
def test_options_of_pipeline_folders(tmp_path, pipeline, name, key, value):
    folder = copied(pipeline, tmp_path / "folder")
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, key: value}))
    refused(read_pipeline, folder, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "file", ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"]
)
@pytest.mark.parametrize("name", JSON_FILES)
def test_config_files_of_pipeline_folders(tmp_path, pipeline, file, name):
    folder = copied(pipeline, tmp_path / "folder")
    (folder / file).write_bytes(JSON_FILES[name])
    refused(read_pipeline, folder, tmp_path / "out.pth")


@pytest.mark.parametrize("name", ["cut", "unknown dtype", "negative offset"])
def test_weights_of_pipeline_folders(tmp_path, pipeline, name):
    folder = copied(pipeline, tmp_path / "folder")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    refused(read_pipeline, folder, tmp_path / "out.pth")


@pytest.mark.parametrize(
    "file", ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"]
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_in_pipeline_folders_are_not_opened(tmp_path, pipeline, file, make):
    folder = copied(pipeline, tmp_path / "folder")
    replaced(folder / file, make)
    assert "not a regular file" in refused(read_pipeline, folder, tmp_path / "out.pth")


BIAS = "proj_out_2.bias"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def sharded(folder, change=lambda weights: weights, index=lambda listed: {"weight_map": listed}):
    """Split the weights into a.safetensors, which holds `BIAS` and may be changed, and b."""
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = read_state_dict(path, "the test")
    path.unlink()
    names = sorted(state)
    parts = {"a": names[: len(names) // 2], "b": names[len(names) // 2 :]}
    for part, keys in parts.items():
        weights = {key: state[key].clone() for key in keys}
        save_file(
            change(weights) if part == "a" else weights, path.with_name(f"{part}.safetensors")
        )
    listed = {key: f"{part}.safetensors" for part, keys in parts.items() for key in keys}
    content = index({key: listed[key] for key in sorted(listed)})
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "transformer" / INDEX).write_text(text)
    return folder


def test_a_transformer_in_several_files_is_read_as_one(tmp_path, pipeline):
    read_pipeline(pipeline, tmp_path / "one.pth")
    folder = sharded(copied(pipeline, tmp_path / "folder"))
    read_pipeline(folder, tmp_path / "several.pth")
    one, several = (checkpoint.load(tmp_path / f"{name}.pth")["ema"] for name in ("one", "several"))
    assert one.keys() == several.keys()
    assert all(torch.equal(one[key], several[key]) for key in one)


SHARDS = {  # of the weights in the first file
    "another shape": lambda weights: {**weights, BIAS: torch.zeros(5)},
    "one is missing": lambda weights: {k: v for k, v in weights.items() if k != BIAS},
    "integers": lambda weights: {**weights, BIAS: weights[BIAS].long()},
}
INDEXES = {
    "no map": lambda listed: {"metadata": {}},
    "the map is a list": lambda listed: {"weight_map": [1]},
    "the map is empty": lambda listed: {"weight_map": {}},
    "a list": lambda listed: [],
    "no JSON": lambda listed: "{",
    "deep": lambda listed: nested(100_000),
    "a file above": lambda listed: {"weight_map": {**listed, BIAS: "../x.safetensors"}},
    "an absolute file": lambda listed: {"weight_map": {**listed, BIAS: "/etc/passwd"}},
    "the folder": lambda listed: {"weight_map": {**listed, BIAS: ".."}},
    "a file that is absent": lambda listed: {"weight_map": {**listed, BIAS: "c.safetensors"}},
    "a file of another kind": lambda listed: {"weight_map": {**listed, BIAS: "config.json"}},
    "a number as a file": lambda listed: {"weight_map": {**listed, BIAS: 5}},
    "a list as a file": lambda listed: {"weight_map": {**listed, BIAS: ["a"]}},
    "the other file": lambda listed: {"weight_map": {**listed, BIAS: "b.safetensors"}},
    "a weight is not listed": lambda listed: {
        "weight_map": {k: v for k, v in listed.items() if k != BIAS}
    },
    "a weight that no file has": lambda listed: {"weight_map": {**listed, "x": "a.safetensors"}},
}


@pytest.mark.parametrize("name", SHARDS)
def test_weights_of_a_transformer_in_several_files(tmp_path, pipeline, name):
    folder = sharded(copied(pipeline, tmp_path / "folder"), SHARDS[name])
    assert BIAS in refused(read_pipeline, folder, tmp_path / "out.pth")


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_of_a_transformer_in_several_files(tmp_path, pipeline, name):
    folder = sharded(copied(pipeline, tmp_path / "folder"), index=INDEXES[name])
    refused(read_pipeline, folder, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("key", ["num_layers", "attention_head_dim", "num_embeds_ada_norm"])
def test_sizes_of_a_transformer_in_several_files(tmp_path, pipeline, key):
    """Each is compared with the shapes before memory is taken for it."""
    folder = sharded(copied(pipeline, tmp_path / "folder"))
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 500}))
    message = refused(read_pipeline, folder, tmp_path / "out.pth")
    assert "has no" in message or "has the shape" in message


# ---- archives and pictures ------------------------------------------------------------------


def png(side=(20, 24)):
    out = io.BytesIO()
    Image.new("RGB", side).save(out, "png")
    return out.getvalue()


def chunk(kind, data):
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


def png_of(width, height, body=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def zipped(*members, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


ONE = zipped(("cat/a.png", png()))
CENTRAL = ONE.index(b"PK\x01\x02")
END = ONE.index(b"PK\x05\x06")


def patched(place, data):
    return ONE[:place] + data + ONE[place + len(data) :]


def tiff_of(count):
    return b"II*\0" + struct.pack("<IH", 8, count) + bytes(12)


ARCHIVES = {
    "empty": b"",
    "cut": ONE[: len(ONE) // 2],
    "no zip": b"x" * 100,
    "a directory outside": patched(END + 16, struct.pack("<I", 2**32 - 2)),
    "a directory of 4 GB": patched(END + 12, struct.pack("<I", 2**32 - 2)),
    "a member beyond the end": patched(CENTRAL + 42, struct.pack("<I", 2**31)),
    "a member larger than the file": patched(CENTRAL + 20, struct.pack("<I", 2**31)),
    "a member of 4 GB": patched(CENTRAL + 24, struct.pack("<I", 2**32 - 2)),
    "a bomb": zipped(("cat/a.png", bytes(100 << 20)), compression=zipfile.ZIP_DEFLATED),
    "another version": patched(CENTRAL + 6, b"\xff"),
    "another method": patched(CENTRAL + 10, b"\x63"),
    "encrypted": patched(CENTRAL + 8, b"\x01"),
    "another checksum": patched(CENTRAL + 16, b"\0\0\0\0"),
    "up": zipped(("../a.png", png())),
    "a NUL": zipped(("cat/a\0/../../b.png", png()), ("/x.png", png())),
    "an archive": zipped(("cat/a.zip", ONE)),
    "no classes": zipped(("a.png", png())),
    "a huge picture": zipped(("cat/a.png", png_of(50_000, 50_000))),
    "a picture of 2^31": zipped(("cat/a.png", png_of(2**31 - 1, 2**31 - 1))),
    "a picture of no pixels": zipped(("cat/a.png", png_of(0, 0))),
    "a picture without pixels": zipped(("cat/a.png", png_of(64, 64))),
    "a cut picture": zipped(("cat/a.png", png()[:40])),
    "a tiff of 65,535 tags": zipped(("cat/a.tif", tiff_of(65535))),
    "a tiff that points to itself": zipped(("cat/a.tif", b"II*\0" + struct.pack("<I", 0))),
    "a gif": zipped(("cat/a.gif", b"GIF89a" + b"\xff" * 20)),
    "a bmp": zipped(("cat/a.bmp", b"BM" + b"\xff" * 60)),
    "a webp": zipped(("cat/a.webp", b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 20)),
    "a pickle": zipped(("cat/a.png", pickle.dumps(Evil(os.system, COMMAND)))),
    "postscript": zipped(("cat/a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n")),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_pictures(tmp_path, name):
    (tmp_path / "x.zip").write_bytes(ARCHIVES[name])

    def read():
        options = dict(root=str(tmp_path / "x.zip"), resolution=16)
        build(DATASETS, dict(type="ImageFolder", **options))[0]

    refused(read)


def captions(images, annotations):
    return json.dumps({"images": images, "annotations": annotations}).encode()


IMAGE = {"id": 1, "file_name": "a.jpg"}
CAPTION = {"image_id": 1, "caption": "a cat"}
CAPTION_FILES = {
    **JSON_FILES,
    "a path upwards": captions([{**IMAGE, "file_name": "../a.jpg"}], [CAPTION]),
    "an absolute path": captions([{**IMAGE, "file_name": "/etc/passwd"}], [CAPTION]),
    "a NUL in a name": captions([{**IMAGE, "file_name": "a\0b"}], [CAPTION]),
    "an id that is a list": captions([{**IMAGE, "id": [1]}], [CAPTION]),
    "a caption of no image": captions([IMAGE], [{**CAPTION, "image_id": 7}]),
    "images are a number": captions(5, [CAPTION]),
    "no captions": captions([IMAGE], []),
    "an id of 10^400": captions([{**IMAGE, "id": 1}], [CAPTION]).replace(b": 1,", b": 1e400,", 1),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_captions(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    (tmp_path / "captions.json").write_bytes(CAPTION_FILES[name])

    def read():
        places = dict(images=str(tmp_path / "images"), annotations=str(tmp_path / "captions.json"))
        build(DATASETS, dict(type="CocoCaptions", resolution=16, **places))

    refused(read)
