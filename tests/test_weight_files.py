"""The reader of weight files: formats, wrappers, keys, and files that must be refused."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ahpa.registry import UserError
from ahpa.registry.weight_files import read_contents, read_shapes, read_state_dict

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0).half()}


@pytest.fixture(params=["bare.safetensors", "bare.pt", "state_dict.ckpt", "model.pth"])
def file(request, tmp_path):
    """The same weights in every layout."""
    path = tmp_path / request.param
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    elif path.stem == "bare":
        torch.save(STATE, path)
    else:
        torch.save({path.stem: STATE, "epoch": 3}, path)
    return path


def test_tensors_come_back_from_every_layout(file):
    found = read_state_dict(file, "the test")
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype


def test_shapes_come_without_tensors(file):
    assert read_shapes(file, "the test") == {"a.weight": (2, 3), "b": ()}


def test_some_keys_alone_are_read(file):
    assert list(read_state_dict(str(file), "the test", ["b"])) == ["b"]
    with pytest.raises(UserError, match=r"the test: .* has no weight 'c'"):
        read_state_dict(file, "the test", ["b", "c"])


def test_other_values_are_refused_where_they_are_asked_for(tmp_path):
    torch.save({**STATE, "step": 3}, tmp_path / "x.pt")
    assert list(read_shapes(tmp_path / "x.pt", "the test")) == list(STATE)
    assert list(read_state_dict(tmp_path / "x.pt", "the test", STATE)) == list(STATE)
    with pytest.raises(UserError, match="must hold tensors only; 'step' is a int"):
        read_state_dict(tmp_path / "x.pt", "the test")
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(UserError, match="must hold a dictionary of tensors, got a list"):
        read_state_dict(tmp_path / "x.pt", "the test")


def test_a_harmless_class_can_be_allowed(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"ema": STATE, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match="refused"):
        read_contents(path, "the test")
    assert list(read_contents(path, "the test", allowed=[argparse.Namespace])["ema"]) == list(STATE)


def test_torchs_older_format_and_shared_weights_are_read(tmp_path):
    """Bounds on what a file may allocate do not refuse what training programs write."""
    table = torch.randn(300, 40)
    state = {"a": table, "tied": table, "part": table[:9], "turned": table.T, "n": torch.tensor(7)}
    state |= {f"layer{i}": torch.randn(20, i + 1).half() for i in range(30)}
    options = {"seed": 2**31 - 1, "steps": [10**6] * 3}
    for old in (True, False):
        torch.save(
            {"model": state, "args": options},
            tmp_path / "x.pt",
            _use_new_zipfile_serialization=not old,
        )
        found = read_state_dict(tmp_path / "x.pt", "the test")
        assert all(torch.equal(found[key], value) for key, value in state.items())
        assert read_contents(tmp_path / "x.pt", "the test")["args"] == options


@pytest.mark.parametrize("read", [read_state_dict, read_shapes, read_contents])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_missing_and_damaged_files_are_named_in_one_line(tmp_path, read, name):
    path = tmp_path / name
    with pytest.raises(UserError, match=f"the test: there is no file {path}"):
        read(path, "the test")
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match=f"the test: {path} is refused: it is damaged") as caught:
        read(path, "the test")
    assert "\n" not in str(caught.value)


class Evil(str):
    def __reduce__(self):
        return (os.system, (f"touch '{self}'",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("read", [read_state_dict, read_shapes, read_contents])
def test_code_is_never_run(tmp_path, read):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": Evil(tmp_path / "ran")}))
    with pytest.raises(UserError, match="could run code"):
        read(path, "the test")
    assert not (tmp_path / "ran").exists()
